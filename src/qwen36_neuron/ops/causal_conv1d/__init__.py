"""Depthwise causal convolution with SiLU, a module a form.

`naive` is the definition, `static` a graph's form, `step` one token a sequence, `verify` one and drafts, `depthwise` a
CPU's and `nki` the device's; compiled CPU code has it in `gated_delta_rule`.
"""

from .depthwise import causal_conv1d_cpu
from .naive import naive_causal_conv1d
from .static import causal_conv1d, place_window, windows_at
from .step import causal_conv1d_step
from .verify import causal_conv1d_verify

__all__ = [
    "causal_conv1d",
    "causal_conv1d_cpu",
    "causal_conv1d_step",
    "causal_conv1d_verify",
    "naive_causal_conv1d",
    "place_window",
    "windows_at",
]
