"""Weights laid out for products with a few rows, in the bytes that their numbers need.

At one row a product takes as long as reading its weight; from about eight on, arithmetic counts. So a weight is kept a
second time, in panels of as many outputs as two vectors hold: a panel is read once from its first number to its last,
every vector of it is used for all rows, and nothing is left to add up across a vector. Numbers that are bfloat16, as
all are in a published checkpoint, are held as such, in half the bytes of fp32: nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .product import LANES, Vectors
from .scalar import Array, compiled

PANEL = 2 * LANES
"""Outputs of a panel."""

UNROLLED = 4
"""Inputs of a turn of the loop: so many vectors of a weight are asked for before the first is used."""

BLOCK = 32
"""Inputs whose products are added up before they are added to the rest, which keeps rounding small.

It is the same for any number of rows: what a row gives does not depend on those beside it.
"""

IN_ORDER = ("contract",)
"""Flags of arithmetic whose sums are in one order."""


class Packed(NamedTuple):
    """A weight [outputs, inputs] in panels.

    Attributes:
        data: fp32, or uint16 for bfloat16, [panels, inputs, PANEL], zero where there is no output.
        outputs: number of outputs.
    """

    data: Array
    outputs: int

    @classmethod
    def of(cls, weight: torch.Tensor) -> Packed:
        """Pack an fp32 weight [outputs, inputs]."""
        outputs, inputs = weight.shape
        narrow = weight.detach().to(torch.bfloat16)
        lossless = torch.equal(narrow.to(weight.dtype), weight)
        numbers = narrow.view(torch.int16).numpy().view(np.uint16) if lossless else weight.detach().numpy()
        panels = -(-outputs // PANEL)
        data = np.zeros((panels, inputs, PANEL), numbers.dtype)
        for panel in range(panels):
            part = numbers[panel * PANEL : (panel + 1) * PANEL]
            data[panel, :, : len(part)] = part.T
        return cls(data, outputs)


def _product_of(rows: int) -> Callable[..., Any]:
    """An operation (x [n, inputs], at, panel [inputs, PANEL], out [n, PANEL]): rows at .. at + `rows` of x panel."""

    @intrinsic
    def multiply(_context: Any, x: Any, at: Any, panel: Any, out: Any) -> Any:
        signature = types.void(x, types.intp, panel, out)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vectors, integer = Vectors(builder), ir.IntType(64)
            x, at, panel, out = arguments
            x_type, _, panel_type, out_type = signature.args
            inputs, weight, result = (
                context.make_array(kind)(context, builder, value)
                for kind, value in ((x_type, x), (panel_type, panel), (out_type, out))
            )
            load = vectors.load_narrow if panel_type.dtype == types.uint16 else vectors.load_at
            depth = cgutils.unpack_tuple(builder, weight.shape)[0]

            def constant(value: int) -> Any:
                return ir.Constant(integer, value)

            def rows_of(start: Any, width: Any) -> list[Any]:
                return [builder.gep(start, [builder.mul(width, builder.add(at, constant(row)))]) for row in range(rows)]

            ours, halves = rows_of(inputs.data, depth), (0, LANES)
            totals = [[cgutils.alloca_once_value(builder, vectors.none) for _ in halves] for _ in range(rows)]

            def add(k: Any) -> None:
                first = builder.mul(k, constant(PANEL))
                parts = [load(weight.data, builder.add(first, constant(half))) for half in halves]
                for start, sums in zip(ours, totals, strict=True):
                    factor = vectors.spread(builder.load(builder.gep(start, [k])))
                    for part, total in zip(parts, sums, strict=True):
                        builder.store(vectors.add_product(factor, part, builder.load(total), IN_ORDER), total)

            def add_all(begin: Any, count: Any) -> None:
                """Add `count` inputs from `begin` on to the result."""
                for sums in totals:
                    for total in sums:
                        builder.store(vectors.none, total)
                turns = builder.udiv(count, constant(UNROLLED))
                with cgutils.for_range(builder, turns, intp=integer) as loop:
                    first = builder.add(begin, builder.mul(loop.index, constant(UNROLLED)))
                    for step in range(UNROLLED):
                        add(builder.add(first, constant(step)))
                done = builder.mul(turns, constant(UNROLLED))
                with cgutils.for_range(builder, builder.sub(count, done), intp=integer) as loop:
                    add(builder.add(begin, builder.add(done, loop.index)))
                for target, sums in zip(rows_of(result.data, constant(PANEL)), totals, strict=True):
                    for half, total in zip(halves, sums, strict=True):
                        place = vectors.at(target, constant(half))
                        builder.store(builder.fadd(vectors.load(place), builder.load(total)), place, align=4)

            for target in rows_of(result.data, constant(PANEL)):
                for half in halves:
                    builder.store(vectors.none, vectors.at(target, constant(half)), align=4)
            blocks = builder.udiv(depth, constant(BLOCK))
            with cgutils.for_range(builder, blocks, intp=integer) as loop:
                add_all(builder.mul(loop.index, constant(BLOCK)), constant(BLOCK))
            rest = builder.mul(blocks, constant(BLOCK))
            add_all(rest, builder.sub(depth, rest))
            return context.get_dummy_value()

        return signature, generate

    return multiply


_one, _two, _three, _four, _five, _six, _seven, _eight = (_product_of(rows) for rows in range(1, 9))


@compiled(inline=False)
def times_panel(x: Array, panel: Array, out: Array) -> None:
    """Rows x [rows, inputs], contiguous, times a panel [inputs, PANEL]: into out [rows, PANEL]."""
    rows = x.shape[0]
    for at in range(0, rows - 7, 8):
        _eight(x, at, panel, out)
    at = rows // 8 * 8
    left = rows - at
    if left == 7:
        _seven(x, at, panel, out)
    elif left == 6:
        _six(x, at, panel, out)
    elif left == 5:
        _five(x, at, panel, out)
    elif left == 4:
        _four(x, at, panel, out)
    elif left == 3:
        _three(x, at, panel, out)
    elif left == 2:
        _two(x, at, panel, out)
    elif left == 1:
        _one(x, at, panel, out)
