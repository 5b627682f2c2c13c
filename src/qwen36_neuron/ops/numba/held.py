"""Weights held in few bytes: written out for a matrix library, looked up by row, and inputs rounded for them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from .panels import FP8_UNIT, HAS_HALVES, PANEL, Packed
from .scalar import Array, compiled, f32, zero


@intrinsic
def number(_context: Any, stored: Any) -> Any:
    """The fp32 number that is stored as fp32, bfloat16 (uint16), int8 or E4M3 (uint8; over `FP8_UNIT`)."""

    def generate(_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (value,), (kind,) = arguments, signature.args
        single, sixteen, wide = ir.FloatType(), ir.IntType(16), ir.IntType(32)
        if kind == types.uint16:
            return builder.bitcast(builder.shl(builder.zext(value, wide), ir.Constant(wide, 16)), single)
        if kind == types.int8:
            return builder.sitofp(value, single)
        if kind == types.uint8:
            shifted = builder.shl(builder.sext(value, sixteen), ir.Constant(sixteen, 7))
            half = builder.bitcast(builder.and_(shifted, ir.Constant(sixteen, 0xBFFF)), ir.HalfType())
            return builder.fpext(half, single)
        return value

    return types.float32(stored), generate


@compiled(parallel=True)
def write_out(weight: Packed, first: int, out: Array) -> None:
    """A weight's numbers from panel `first` on, as a matrix library reads them: into out [whole panels, inputs]."""
    inputs = weight.data.shape[1]
    for at in prange(out.shape[0] // PANEL):
        panel, scales = weight.data[first + at], weight.scales[first + at]
        for begin in range(0, inputs, PANEL):
            end, group = min(begin + PANEL, inputs), begin // weight.group
            for j in range(PANEL):
                row = out[at * PANEL + j]
                for k in range(begin, end):
                    row[k] = number(panel[k, j]) * scales[group, j]


@compiled()
def rounded_rows(x: Array) -> Array:
    """Rows [rows, n] rounded to 8 bits, a scale a row, as `checkpoint.formats.round_inputs` does it."""
    out = np.empty(x.shape, np.float32)
    for i in range(x.shape[0]):
        most = zero
        for j in range(x.shape[1]):
            most = max(most, abs(x[i, j]))
        scale = most / f32(127.0)
        divisor = max(scale, f32(np.finfo(np.float32).tiny))
        for j in range(x.shape[1]):
            out[i, j] = np.rint(x[i, j] / divisor) * scale
    return out


class Table(NamedTuple):
    """A matrix [rows, n] of which single rows are asked for.

    Attributes:
        data: as of `Packed`, [rows, n]; scales: fp32, of `block` rows and columns each.
    """

    data: Array
    scales: Array
    block: tuple[int, int]

    @classmethod
    def of(cls, weight: torch.Tensor) -> Table:
        """Of fp32 or bfloat16 [rows, n], in the bytes that its numbers need."""
        narrow = weight.detach().to(torch.bfloat16)
        lossless = torch.equal(narrow.to(weight.dtype), weight)
        numbers = narrow.view(torch.int16).numpy().view(np.uint16) if lossless else weight.detach().float().numpy()
        return cls(numbers, np.ones((1, 1), np.float32), numbers.shape)

    @classmethod
    def over(cls, numbers: Array) -> Table:
        """Of fp32 [rows, n], in its own memory."""
        return cls(numbers, np.ones((1, 1), np.float32), numbers.shape)

    @classmethod
    def of_codes(cls, codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> Table | None:
        """Of codes, int8 or float8_e4m3fn; None where they cannot be held as such."""
        if codes.dtype == torch.int8:
            return cls(codes.numpy(), scales.float().numpy(), block)
        return cls(codes.view(torch.uint8).numpy(), (scales.float() * FP8_UNIT).numpy(), block) if HAS_HALVES else None

    @property
    def nbytes(self) -> int:
        """Of memory."""
        return self.data.nbytes + self.scales.nbytes


@compiled()
def take_row(table: Table, row: int, out: Array) -> None:
    """The numbers of a row: into out [n]."""
    stored, scales = table.data[row], table.scales[row // table.block[0]]
    for j in range(out.shape[0]):
        out[j] = number(stored[j]) * scales[j // table.block[1]]


@compiled(inline=False)
def take_rows(table: Table, rows: Array, out: Array) -> None:
    """The numbers of rows, int64 [n]: into out [n, columns]."""
    for i in range(rows.shape[0]):
        take_row(table, rows[i], out[i])
