"""How many sequences a launch of a whole DeltaNet mixer takes."""

from .gated_delta_rule_decode import HELD

ROWS = 32
"""Sequences of which a window and a token lie on as many partitions as there are."""
COLUMNS = 512
"""Of a bank of PSUM; what a token is to its own key takes five a key head."""


def sequences_at_once(key_heads: int, heads: int) -> int:
    """Of so many key and value heads of a core."""
    return min(ROWS, HELD // heads, COLUMNS // (5 * key_heads))
