"""FP8 as `qwen36 compile` writes it: no configuration, the scales say themselves what they are of.

A matrix `x.weight` in FP8 has `x.scale`, one for each channel or block. Blocks under the published name are read so
too: what is left when a published checkpoint's configuration is taken out.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..sharding import Slice
from .block_fp8 import FP8
from .layout import FLOATS, Expected, Stored, cut, cut_scales, shape_of
from .weight import Inputs, QuantisedWeight

SCALE, PUBLISHED_SCALE = ".scale", ".weight_scale_inv"
"""What follows a layer's name in that of its scales: in NxD's layout, as written here, and as published."""


@dataclass(frozen=True, slots=True)
class OwnFp8:
    """An FP8 matrix whose scales are under `ending`, one for each `block` of rows and columns."""

    ending: str
    block: tuple[int, int]
    inputs: Inputs = Inputs.PLAIN

    @property
    def endings(self) -> tuple[str, ...]:
        """See `Layout`."""
        return ".weight", self.ending

    def tensors(self, shape: tuple[int, int]) -> dict[str, Expected]:
        """`weight` float8_e4m3 [out, in] and its scales."""
        rows, columns = (-(-size // step) for size, step in zip(shape, self.block, strict=True))
        return {".weight": Expected((FP8,), shape), self.ending: Expected(FLOATS, (rows, columns))}

    def shape(self, stored: Stored) -> tuple[int, int]:
        """See `Layout`."""
        return shape_of(stored[".weight"])

    def steps(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Blocks; a channel is one row, and any column of it."""
        return self.block[0], self.block[1] if self.block[1] < shape[1] else 1

    def read(self, stored: Stored, piece: Slice) -> QuantisedWeight:
        """See `Layout.read`."""
        codes = cut(stored[".weight"], piece.dim, piece.start, piece.stop)
        scales = cut_scales(stored[self.ending], piece, self.block[piece.dim])
        return QuantisedWeight(codes, scales, self.block, self.inputs)
