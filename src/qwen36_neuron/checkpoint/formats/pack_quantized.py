"""`pack-quantized` of compressed-tensors, 8 bits: four codes plus 128 in an int32, scales by group or by channel."""

from __future__ import annotations

from dataclasses import dataclass

from ..sharding import Slice
from .layout import FLOATS, Expected, Stored, cut, cut_scales, signed, unpacked
from .weight import Inputs, QuantisedWeight

PACKED, SCALE, SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"
WORD = 4
"""Codes in an int32."""


@dataclass(frozen=True, slots=True)
class PackQuantized:
    """Symmetric INT8 for weights alone.

    Attributes:
        group: inputs that share a scale; None for one scale an output.
    """

    group: int | None
    inputs: Inputs = Inputs.PLAIN

    @property
    def endings(self) -> tuple[str, ...]:
        """See `Layout`."""
        return PACKED, SCALE, SHAPE

    def tensors(self, shape: tuple[int, int]) -> dict[str, Expected]:
        """`weight_packed` int32 [out, ceil(in / 4)], `weight_scale` [out, ceil(in / group)], `weight_shape` [2]."""
        rows, columns = shape
        groups = 1 if self.group is None else -(-columns // self.group)
        return {
            PACKED: Expected(("I32",), (rows, -(-columns // WORD))),
            SCALE: Expected(FLOATS, (rows, groups)),
            SHAPE: Expected(("I64", "I32"), (2,)),
        }

    def shape(self, stored: Stored) -> tuple[int, int]:
        """See `Layout`."""
        rows, columns = stored[SHAPE][:].tolist()
        return rows, columns

    def steps(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Groups begin at words."""
        return 1, self.group or WORD

    def read(self, stored: Stored, piece: Slice) -> QuantisedWeight:
        """See `Layout.read`."""
        shape = self.shape(stored)
        stops = (piece.start, piece.stop) if piece.dim == 0 else (piece.start // WORD, -(-piece.stop // WORD))
        codes = signed(unpacked(cut(stored[PACKED], piece.dim, *stops)).flatten(1))
        width = shape[1] if piece.dim == 0 else piece.stop - piece.start
        columns = self.group or shape[1]
        scales = cut_scales(stored[SCALE], piece, (1, columns)[piece.dim])
        return QuantisedWeight(codes.narrow(1, 0, width), scales, (1, columns), self.inputs)
