"""Weights laid out for products with a few rows, in the bytes that their numbers need.

At one row a product takes as long as reading its weight; from about eight on, arithmetic counts. So a weight is kept a
second time, in panels of as many outputs as two vectors hold: a panel is read once from its first number to its last,
every vector of it is used for all rows, and nothing is left to add up across a vector. Numbers that are bfloat16, as
all are in a published checkpoint, are held as such, in half the bytes of fp32: nothing is lost.

Weights of a quantised checkpoint stay in their codes of a byte. A code becomes a number in a register; the scale that a
group of inputs shares multiplies the sum of their products, one multiplication for `BLOCK` of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import binding, ir
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


FP8_UNIT = 256.0
"""What a code of E4M3 is over the number that it is loaded as, see `Vectors.load_fp8`. Scales are held with it."""

HAS_HALVES = bool(binding.get_host_cpu_features().get("f16c")) or "x86" not in binding.get_process_triple()
"""Whether the processor turns halves into fp32 by itself. Where not, FP8 is held as what it stands for."""


class Packed(NamedTuple):
    """A weight [outputs, inputs] in panels.

    Attributes:
        data: fp32, uint16 for bfloat16, int8, or uint8 for codes of E4M3, [panels, inputs, PANEL], zero where there is
            no output.
        scales: fp32 [panels, groups, PANEL], what codes are multiplied with; not read of numbers that are no codes.
        group: inputs that share a scale, a multiple of BLOCK or at least all inputs.
        outputs: number of outputs.
        rounds: whether inputs are rounded to 8 bits a row first.
    """

    data: Array
    scales: Array
    group: int
    outputs: int
    rounds: bool

    @classmethod
    def of(cls, weight: torch.Tensor) -> Packed:
        """Pack an fp32 weight [outputs, inputs], or a bfloat16 one."""
        outputs, inputs = weight.shape
        narrow = weight.detach().to(torch.bfloat16)
        lossless = torch.equal(narrow.to(weight.dtype), weight)
        numbers = narrow.view(torch.int16).numpy().view(np.uint16) if lossless else weight.detach().numpy()
        return cls(_panels(numbers), np.ones((-(-outputs // PANEL), 1, PANEL), np.float32), inputs, outputs, False)

    @classmethod
    def of_codes(cls, codes: torch.Tensor, scales: torch.Tensor, group: int, rounds: bool = False) -> Packed | None:
        """Pack codes, int8 or float8_e4m3fn [outputs, inputs], with a scale for each `group` inputs of an output.

        Args:
            scales: of any float type, [outputs, ceil(inputs / group)].
        Returns:
            None where codes cannot be held as such: groups are not of whole blocks, or FP8 not of this processor.
        """
        outputs, inputs = codes.shape
        if group < inputs and group % BLOCK:
            return None
        if codes.dtype == torch.int8:
            numbers, unit = codes.numpy(), 1.0
        elif HAS_HALVES:
            numbers, unit = codes.view(torch.uint8).numpy(), FP8_UNIT
        else:
            return None
        held = _panels(np.ascontiguousarray((scales.float() * unit).numpy()))
        return cls(_panels(numbers), held, min(group, inputs), outputs, rounds)

    def rows(self, first: int) -> Packed:
        """The outputs from `first` on, which must begin a panel: a view."""
        assert first % PANEL == 0
        panel = first // PANEL
        return Packed(self.data[panel:], self.scales[panel:], self.group, self.outputs - first, self.rounds)

    @property
    def nbytes(self) -> int:
        """Of memory."""
        return self.data.nbytes + self.scales.nbytes


def _panels(numbers: Array) -> Array:
    """[outputs, n] in panels, [panels, n, PANEL]."""
    outputs, width = numbers.shape
    data = np.zeros((-(-outputs // PANEL), width, PANEL), numbers.dtype)
    for panel in range(len(data)):
        part = numbers[panel * PANEL : (panel + 1) * PANEL]
        data[panel, :, : len(part)] = part.T
    return data


CODES = (types.int8, types.uint8)
"""Types of codes, which have scales."""


def loader(vectors: Vectors, kind: Any) -> Callable[[Any, Any], Any]:
    """What loads a vector of numbers that are stored as `kind`."""
    loaders = {types.uint16: vectors.load_narrow, types.int8: vectors.load_int8, types.uint8: vectors.load_fp8}
    return loaders.get(kind, vectors.load_at)


def _product_of(rows: int) -> Callable[..., Any]:
    """An operation (x [n, inputs], picks, at, panel [inputs, PANEL], scales, group, out [m, PANEL]): some rows x panel.

    Those of `out` are at .. at + `rows`; of x they are the same, or where picks, int64 [m], are given, those that are
    picked for them. Scales [groups, PANEL] are of `group` inputs each.
    """

    @intrinsic
    def multiply(_context: Any, x: Any, picks: Any, at: Any, panel: Any, scales: Any, group: Any, out: Any) -> Any:
        signature = types.void(x, picks, types.intp, panel, scales, types.intp, out)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vectors, integer = Vectors(builder), ir.IntType(64)
            x, picks, at, panel, scales, group, out = arguments
            x_type, picks_type, _, panel_type, scales_type, _, out_type = signature.args
            inputs, weight, factors, result = (
                context.make_array(kind)(context, builder, value)
                for kind, value in ((x_type, x), (panel_type, panel), (scales_type, scales), (out_type, out))
            )
            load = loader(vectors, panel_type.dtype)
            codes = panel_type.dtype in CODES
            depth = cgutils.unpack_tuple(builder, weight.shape)[0]

            def constant(value: int) -> Any:
                return ir.Constant(integer, value)

            ours, halves = [builder.add(at, constant(row)) for row in range(rows)], (0, LANES)

            def rows_of(start: Any, width: Any, which: list[Any]) -> list[Any]:
                return [builder.gep(start, [builder.mul(width, row)]) for row in which]

            picked = ours
            if picks_type != types.none:
                places = context.make_array(picks_type)(context, builder, picks).data
                picked = [builder.load(builder.gep(places, [row])) for row in ours]
            starts = rows_of(inputs.data, depth, picked)
            totals = [[cgutils.alloca_once_value(builder, vectors.none) for _ in halves] for _ in range(rows)]

            def add(k: Any) -> None:
                first = builder.mul(k, constant(PANEL))
                parts = [load(weight.data, builder.add(first, constant(half))) for half in halves]
                for start, sums in zip(starts, totals, strict=True):
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
                first = builder.mul(builder.udiv(begin, group), constant(PANEL))
                shared = [vectors.load_at(factors.data, builder.add(first, constant(half))) for half in halves if codes]
                for target, sums in zip(rows_of(result.data, constant(PANEL), ours), totals, strict=True):
                    for index, (half, total) in enumerate(zip(halves, sums, strict=True)):
                        place = vectors.at(target, constant(half))
                        before, found = vectors.load(place), builder.load(total)
                        if codes:
                            after = vectors.add_product(shared[index], found, before, IN_ORDER)
                        else:
                            after = builder.fadd(before, found)
                        builder.store(after, place, align=4)

            for target in rows_of(result.data, constant(PANEL), ours):
                for half in halves:
                    builder.store(vectors.none, vectors.at(target, constant(half)), align=4)
            blocks = builder.udiv(depth, constant(BLOCK))
            with cgutils.for_range(builder, blocks, intp=integer) as loop:
                add_all(builder.mul(loop.index, constant(BLOCK)), constant(BLOCK))
            rest = builder.mul(blocks, constant(BLOCK))
            with builder.if_then(builder.icmp_unsigned("<", rest, depth)):
                add_all(rest, builder.sub(depth, rest))
            return context.get_dummy_value()

        return signature, generate

    return multiply


_one, _two, _three, _four, _five, _six, _seven, _eight = (_product_of(rows) for rows in range(1, 9))


@compiled(inline=False)
def times_panel(x: Array, weight: Packed, place: int, out: Array) -> None:
    """Rows x [rows, inputs], contiguous, times panel `place` of a weight: into out [rows, PANEL]."""
    _times(x, None, weight.data[place], weight.scales[place], weight.group, x.shape[0], out)


@compiled(inline=False)
def times_panel_picked(x: Array, picks: Array, weight: Packed, place: int, out: Array) -> None:
    """The same of rows that are picked, int64 [rows]. Each gives the bits that it gives in `times_panel`."""
    _times(x, picks, weight.data[place], weight.scales[place], weight.group, picks.shape[0], out)


@compiled()
def _times(x: Array, picks: Array | None, panel: Array, scales: Array, group: int, rows: int, out: Array) -> None:
    for at in range(0, rows - 7, 8):
        _eight(x, picks, at, panel, scales, group, out)
    at = rows // 8 * 8
    left = rows - at
    if left == 7:
        _seven(x, picks, at, panel, scales, group, out)
    elif left == 6:
        _six(x, picks, at, panel, scales, group, out)
    elif left == 5:
        _five(x, picks, at, panel, scales, group, out)
    elif left == 4:
        _four(x, picks, at, panel, scales, group, out)
    elif left == 3:
        _three(x, picks, at, panel, scales, group, out)
    elif left == 2:
        _two(x, picks, at, panel, scales, group, out)
    elif left == 1:
        _one(x, picks, at, panel, scales, group, out)
