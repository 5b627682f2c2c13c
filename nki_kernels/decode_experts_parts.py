"""One expert of a decode step: its weights on their way, and what it makes of every row. Compiles into kernels.

Weights are stationary, so that gates, ups and what goes into the sum have channels on partitions and rows beside each
other: nothing is turned, a channel's scale is a number a partition, and what an expert gives lies as the residual came
in. A tile of 128 x 128 weights costs TensorE 72 ns at the modelled prices, however few rows pass it, where rows as
the stationary and weights in turn on four groups of columns would cost 64 in runs of 256 columns, and the turning of
gates and ups besides.
"""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .decode_experts_plan import ExpertRow
from .delta_rule_tiles import BANK_COLUMNS, TILE, sbuf

RING, ROOM = 4, 128 * 1024
"""Experts of a core that are on their way or in use, and the bytes a partition that they may take: two if need be."""


@dataclass
class Sum(nl.NKIObject):
    """What experts add up to: rows of channels on partitions.

    Attributes:
        rows: How many.
        normed: bfloat16 [128, lines, group], what every expert has.
        codes: Weights are FP8 codes, whose sums are scaled before they meet others.
        gates: PSUM banks of gates and ups, in turn.
        banks: PSUM banks of down, each of `lines / n` lines; with codes two sets of n, in turn.
        total: fp32 [128, lines, rows] in SBUF; with codes the sum so far, without what `finish` gives.
        left: With codes: (PSUM tile, scales) of the sums that have yet to be added to `total`, of one expert.
        opened, experts: Experts whose gates and ups are in `gates`, and those that have been added.
    """

    rows: int
    normed: nl.ndarray
    codes: bool
    gates: tuple
    banks: tuple
    total: nl.ndarray
    left: list
    opened: int = 0
    experts: int = 0


def down_banks(lines: int, rows: int) -> int:
    """PSUM banks of what an expert gives: 1 or 2, with as many lines each."""
    count = 1 if lines * rows <= BANK_COLUMNS else 2
    fits = lines % count == 0 and lines // count * rows <= BANK_COLUMNS
    assert fits, f"{rows} rows of {lines} lines do not fit in two banks of {BANK_COLUMNS} numbers: give fewer rows"
    return count


def expert_slots(dtype: nl.dtype, size: int, most: int, filled: int) -> list:
    """Tiles of an expert each, `most` or as many as there is room for; the first `filled` are loaded in any case.

    What is multiplied by nothing is a number all the same: an expert that was there before, or zeros.
    """
    out, fit = [], max(2, min(RING, ROOM // (size * (1 if dtype == nl.uint8 else 2))))
    for n in range(max(1, min(fit, most))):
        out.append(sbuf(dtype, (TILE, size)))
        if n >= filled:
            nisa.memset(dst=out[n], value=0 if dtype == nl.uint8 else 0.0, engine=nisa.engine.gpsimd)
    return out


def load_expert(dst: nl.ndarray, weights: nl.ndarray, of: ExpertRow, number: nl.ndarray, awaited: bool) -> None:
    """An expert's row of weights [experts, 128, size] into dst [128, size]; one that does not exist is not read.

    Args:
        number: int32 (1, 1) of SBUF.
        awaited: TensorE has nothing else to do: in three parts, so that products begin when the first is there.
    """
    half = of.lines // 2 * 2 * of.inner
    cuts = (0, half, of.down, of.size) if awaited else (0, of.size)
    for n in range(len(cuts) - 1):
        source = weights.ap(
            pattern=[[of.size, TILE], [1, cuts[n + 1] - cuts[n]]], offset=cuts[n], scalar_offset=number, indirect_dim=0
        )
        nisa.dma_copy(dst=dst[:, cuts[n] : cuts[n + 1]], src=source, oob_mode=nisa.oob_mode.skip)


def load_part(weights: nl.ndarray, of: ExpertRow, core: int) -> nl.ndarray:
    """This core's part of an expert that every row has: [128, size] of weights [cores, 128, size].

    Of `down`, partitions past the channels are not read: they are undefined.
    """
    tile = sbuf(weights.dtype, (TILE, of.size))
    for rows, begin, end in ((TILE, 0, of.down), (of.width, of.down, of.size)):
        source = weights.ap(pattern=[[of.size, rows], [1, end - begin]], offset=core * TILE * of.size + begin)
        nisa.dma_copy(dst=tile[0:rows, begin:end], src=source)
    return tile


def open_expert(to: Sum, tile: nl.ndarray, of: ExpertRow) -> None:
    """Gates and ups of the next expert: TensorE does them while what was opened before passes the other engines.

    Args:
        tile: [128, size], see `ExpertRow`.
    """
    rows, width, blocks = to.rows, of.width, of.blocks
    bank = to.gates[to.opened % len(to.gates)]
    assert 2 * blocks * rows <= BANK_COLUMNS, f"{rows} rows of {of.inner} channels do not fit in a bank: give fewer"
    for side in range(2 * blocks):
        for n in range(of.lines):
            at = (n * 2 * blocks + side) * width
            # [h, i] x [h, r] -> [i, r]
            nisa.nc_matmul(
                dst=bank[0:width, side * rows : (side + 1) * rows], stationary=numbers_of(tile[:, at : at + width]),
                moving=to.normed[:, n : n + 1, 0:rows], accumulate=n > 0,
            )  # fmt: skip
    to.opened = to.opened + 1


def add_expert(to: Sum, tile: nl.ndarray, of: ExpertRow, share: nl.ndarray) -> None:
    """to += share * expert, of the expert that has been open for longest.

    Args:
        share: fp32 [128, rows], alike on all partitions: how much of it each row has. It goes into h, before that is
            rounded: sums over experts need no other factor.
    """
    h = _inner(to, tile, of, share)
    count = down_banks(of.lines, to.rows)
    each, rows = of.lines // count, to.rows
    first = to.experts % 2 * count if to.codes else 0
    fresh = to.codes or to.experts == 0
    for n in range(of.lines):
        bank, place = to.banks[first + n // each], n % each * rows
        for block in range(of.blocks):
            at = of.down + (block * of.lines + n) * TILE
            # [i, c] x [i, r] -> [c, r]
            nisa.nc_matmul(
                dst=bank[:, place : place + rows], stationary=numbers_of(tile[0 : of.width, at : at + TILE]),
                moving=h[:, block], accumulate=block > 0 or not fresh,
            )  # fmt: skip
    if to.codes:
        by = sbuf(nl.float32, (TILE, of.lines))
        scales = scales_of(tile, of)[:, 2 * of.blocks : 2 * of.blocks + of.lines]
        nisa.tensor_copy(dst=by, src=scales, engine=nisa.engine.gpsimd)
        # One expert late: VectorE has the next h to make first, for which TensorE waits.
        _add_left(to)
        to.left = [to.banks[first : first + count], by]
    to.experts = to.experts + 1


def _add_left(to: Sum) -> None:
    """total += the sums of the expert before, scaled."""
    if len(to.left) == 0:
        return
    banks, by = to.left
    lines, rows, fresh = to.total.shape[1], to.rows, to.experts == 1
    each = lines // len(banks)
    for n in range(len(banks)):
        every = by.ap(pattern=[[lines, TILE], [1, each], [0, rows]], offset=n * each)
        sums, here = banks[n][:, 0 : each * rows].reshape((TILE, each, rows)), to.total[:, n * each : (n + 1) * each]
        out = here if fresh else sbuf(nl.float32, (TILE, each, rows))
        nisa.tensor_tensor(dst=out, data1=sums, data2=every, op=nl.multiply, engine=nisa.engine.vector)
        if not fresh:
            nisa.tensor_tensor(dst=here, data1=here, data2=out, op=nl.add, engine=nisa.engine.vector)
    to.left = []


def finish(to: Sum) -> nl.ndarray:
    """The sum, fp32 [128, lines, rows] in SBUF."""
    lines, rows = to.total.shape[1], to.rows
    _add_left(to)
    if not to.codes:
        count = down_banks(lines, rows)
        each = lines // count
        for bank in range(count):
            sums = to.banks[bank][:, 0 : each * rows].reshape((TILE, each, rows))
            here = to.total[:, bank * each : (bank + 1) * each]
            nisa.tensor_copy(dst=here, src=sums, engine=nisa.engine.vector)
    return to.total


def _inner(to: Sum, tile: nl.ndarray, of: ExpertRow, share: nl.ndarray) -> nl.ndarray:
    """h, bfloat16 [width, blocks, rows]: silu(gates) * ups * share."""
    rows, width, blocks, vector = to.rows, of.width, of.blocks, nisa.engine.vector
    bank = to.gates[to.experts % len(to.gates)]
    opened, raised = sbuf(nl.float32, (width, blocks, rows)), sbuf(nl.float32, (width, blocks, rows))
    h = sbuf(nl.bfloat16, (width, blocks, rows))
    ups = bank[0:width, blocks * rows : 2 * blocks * rows].reshape((width, blocks, rows))
    if to.codes:
        scales = scales_of(tile, of)
        for block in range(blocks):
            gate, up = scales[0:width, block : block + 1], scales[0:width, blocks + block : blocks + block + 1]
            here = opened[:, block : block + 1]
            nisa.activation(dst=here, op=nl.silu, data=bank[0:width, block * rows : (block + 1) * rows], scale=gate)
            nisa.scalar_tensor_tensor(
                dst=raised[:, block : block + 1], data=ups[:, block : block + 1], op0=nl.multiply, operand0=up,
                op1=nl.multiply, operand1=here,
            )  # fmt: skip
    else:
        nisa.activation(dst=opened, op=nl.silu, data=bank[0:width, 0 : blocks * rows].reshape((width, blocks, rows)))
        nisa.tensor_tensor(dst=raised, data1=ups, data2=opened, op=nl.multiply, engine=vector)
    for block in range(blocks):
        here = raised[:, block]
        nisa.tensor_tensor(dst=h[:, block], data1=here, data2=share[0:width], op=nl.multiply, engine=vector)
    return h


def numbers_of(tile: nl.ndarray) -> nl.ndarray:
    """Weights as they are multiplied."""
    return tile.view(nl.float8_e4m3) if tile.dtype == nl.uint8 else tile


def scales_of(tile: nl.ndarray, of: ExpertRow) -> nl.ndarray:
    """fp32 [128, 2 * blocks + lines] of a tile of codes."""
    return tile[:, of.down - of.factors : of.down].view(nl.float32)
