"""A matrix in eight bits a number: codes, and scales that blocks of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch

from ..fp8 import dequantise


class Inputs(StrEnum):
    """What becomes of the inputs of a quantised matrix before they are multiplied with it."""

    PLAIN = "plain"
    """Nothing: weight-only formats."""
    INT8_TOKEN = "int8 a token"
    """Each token's are rounded to 8 bits, see `round_inputs`."""


INT8_MAX = 127.0


def round_inputs(x: torch.Tensor) -> torch.Tensor:
    """Inputs [..., n] rounded to 8 bits, a scale a token, and multiplied out again, in x's dtype.

    As vLLM does it (`dynamic_scaled_int8_quant`): the scale is the token's largest magnitude over 127, and what lies
    between two codes goes to the nearer one, halves to the even one. A token of zeros stays as it is.
    """
    wide = x.float()
    scale = wide.abs().amax(-1, keepdim=True) / INT8_MAX
    codes = (wide / scale.clamp_min(torch.finfo(torch.float32).tiny)).round_()
    return codes.mul_(scale).to(x.dtype)


@dataclass(frozen=True, slots=True)
class QuantisedWeight:
    """A matrix [out, in], or some of its rows and columns: codes times scales.

    Attributes:
        codes: int8 or float8_e4m3fn [out, in].
        scales: as stored, of any float type, [ceil(out / block[0]), ceil(in / block[1])]; they may be negative.
        block: rows and columns that share a scale. The first row and column are the first of a block.
        inputs: what becomes of the inputs.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    block: tuple[int, int]
    inputs: Inputs = Inputs.PLAIN

    def dequantise(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Codes times scales [out, in].

        A product is computed in fp32, where it is exact for scales of 16 bits, and rounded to `dtype` once.
        """
        return dequantise(self.codes, self.scales, self.block).to(dtype)

    def part(self, dim: int, start: int, length: int) -> QuantisedWeight:
        """Some rows (dim 0), of a weight with scales by row, or some columns (dim 1), which must begin a block."""
        size = self.block[dim]
        assert start % size == 0
        scales = self.scales
        if scales.shape[dim] > 1 or size < self.codes.shape[dim]:
            scales = scales.narrow(dim, start // size, -(-length // size))
        return replace(self, codes=self.codes.narrow(dim, start, length), scales=scales)

    def by_rows(self) -> QuantisedWeight:
        """The same with scales for each row, [out, ceil(in / block[1])]."""
        rows, columns = self.block
        if rows == 1:
            return self
        scales = self.scales.repeat_interleave(rows, 0).narrow(0, 0, len(self.codes))
        return replace(self, scales=scales, block=(1, columns))


def join(parts: Sequence[QuantisedWeight]) -> QuantisedWeight | None:
    """Weights one below the other as one; None if they are not of one kind."""
    if len({(part.codes.dtype, part.inputs) for part in parts}) > 1:
        return None
    if len(parts) == 1:
        return parts[0]
    width = parts[0].codes.shape[1]
    columns = min(part.block[1] for part in parts)
    if any(part.block[1] not in (columns, width) and part.block[1] < width for part in parts):
        return None
    groups = -(-width // columns)
    scales = [part.by_rows().scales.float() for part in parts]
    scales = [held.expand(-1, groups) if held.shape[1] == 1 else held for held in scales]
    codes = torch.cat([part.codes.view(torch.uint8) for part in parts]).view(parts[0].codes.dtype)
    return QuantisedWeight(codes, torch.cat(scales), (1, columns), parts[0].inputs)
