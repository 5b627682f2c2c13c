"""`int-quantized` of compressed-tensors, W8A8: int8 codes, a scale a channel, inputs rounded to 8 bits a token."""

from __future__ import annotations

from dataclasses import dataclass

from ..sharding import Slice
from .layout import FLOATS, Expected, Stored, cut, cut_scales, shape_of
from .weight import Inputs, QuantisedWeight

WEIGHT, SCALE = ".weight", ".weight_scale"


@dataclass(frozen=True, slots=True)
class IntQuantized:
    """Symmetric INT8; `group` as in `PackQuantized`."""

    group: int | None
    inputs: Inputs

    @property
    def endings(self) -> tuple[str, ...]:
        """See `Layout`."""
        return WEIGHT, SCALE

    def tensors(self, shape: tuple[int, int]) -> dict[str, Expected]:
        """`weight` int8 [out, in] and `weight_scale` [out, 1] or [out, ceil(in / group)]."""
        groups = 1 if self.group is None else -(-shape[1] // self.group)
        return {WEIGHT: Expected(("I8",), shape), SCALE: Expected(FLOATS, (shape[0], groups))}

    def shape(self, stored: Stored) -> tuple[int, int]:
        """See `Layout`."""
        return shape_of(stored[".weight"])

    def steps(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Groups."""
        return 1, self.group or 1

    def read(self, stored: Stored, piece: Slice) -> QuantisedWeight:
        """See `Layout.read`."""
        codes = cut(stored[WEIGHT], piece.dim, piece.start, piece.stop)
        block = 1, self.group or self.shape(stored)[1]
        return QuantisedWeight(codes, cut_scales(stored[SCALE], piece, block[piece.dim]), block, self.inputs)
