"""Depthwise causal convolution with SiLU, a module a form.

`static` is a graph's, `step` one token a sequence, `depthwise` a CPU's; compiled code has it in `gated_delta_rule`.
"""

from .depthwise import causal_conv1d_cpu
from .static import causal_conv1d, place_window, windows_at
from .step import causal_conv1d_step

__all__ = ["causal_conv1d", "causal_conv1d_cpu", "causal_conv1d_step", "place_window", "windows_at"]
