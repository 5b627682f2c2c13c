"""Grouped-query attention over paged keys and values, a module a form, and its rotary embedding.

`naive` is the definition; `paged` reads rows where they are, on a CPU; `static` gathers blocks, in a graph, and
`segments` no more of them at once than it must; `numba` and `numba_step` are compiled for a CPU and hold all of an
attention block between its projections; `nki` is the device's.
"""

from .naive import naive_attention
from .paged import PagedRow, attend, write_kv
from .rope import MOST_POSITIONS, apply_rotary, rotary_tables, rotary_turns
from .segments import segment_blocks, segmented_attention
from .static import block_attention, block_of, gather_blocks, offset_of, whole_blocks, write_blocks, write_tokens

__all__ = [
    "MOST_POSITIONS",
    "PagedRow",
    "apply_rotary",
    "attend",
    "block_attention",
    "block_of",
    "gather_blocks",
    "naive_attention",
    "offset_of",
    "rotary_tables",
    "rotary_turns",
    "segment_blocks",
    "segmented_attention",
    "whole_blocks",
    "write_blocks",
    "write_kv",
    "write_tokens",
]
