"""The gated delta rule, a module a form.

`naive` is the definition, `chunk` a graph's prefill, `chunk_cpu` a CPU's, `step` one token a sequence, `verify` one and
drafts; `numba` and `numba_step` are compiled for a CPU and hold all of a DeltaNet block between its projections; `nki`
is the device's.
"""

from .chunk import gated_delta_rule_boundaries
from .chunk_cpu import StateCopy, gated_delta_rule_prefill_cpu
from .naive import L2_EPS, gated_delta_rule_recurrent, l2norm
from .step import gated_delta_rule_step
from .verify import gated_delta_rule_verify

__all__ = [
    "L2_EPS",
    "StateCopy",
    "gated_delta_rule_boundaries",
    "gated_delta_rule_prefill_cpu",
    "gated_delta_rule_recurrent",
    "gated_delta_rule_step",
    "gated_delta_rule_verify",
    "l2norm",
]
