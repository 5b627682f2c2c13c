"""Cosines and sines of positions, computed once."""

from __future__ import annotations

import torch

from ..config import RopeConfig
from ..ops.attention import rotary_tables
from ..ops.numba.scalar import Array, array

FIRST = 4096
"""Positions of the first table."""


class RotaryTable:
    """Rows of one table by position, of text, where all three axes are the same. It grows as sequences do."""

    def __init__(self, rope: RopeConfig) -> None:
        self._rope = rope
        self._cos, self._sin = self._make(FIRST)

    def reaching(self, end: int) -> tuple[Array, Array]:
        """cos and sin, each fp32 [`end` or more, dim / 2]."""
        if end > len(self._cos):
            self._cos, self._sin = self._make(1 << (end - 1).bit_length())
        return self._cos, self._sin

    def at(self, positions: Array) -> tuple[Array, Array]:
        """cos and sin of positions, int64 [n]: each fp32 [n, dim / 2]."""
        cos, sin = self.reaching(int(positions.max()) + 1)
        return cos[positions], sin[positions]

    def _make(self, count: int) -> tuple[Array, Array]:
        tables = rotary_tables(torch.arange(count)[None], self._rope, torch.float32)
        cos, sin = (array(table[0, :, 0].contiguous()) for table in tables)
        return cos, sin
