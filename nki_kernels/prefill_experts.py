"""A prompt's routed experts on one rank: blocks of one expert's tokens, then each token's sum over its experts."""

from dataclasses import dataclass

import nki
import nki.isa as nisa
import nki.language as nl

from .decode_experts_parts import expert_slots, load_expert, numbers_of, scales_of
from .decode_experts_plan import ExpertRow, expert_row, inner_of
from .delta_rule_tiles import BANK_COLUMNS, TILE, Bank, identity, make_banks, sbuf, split, turn_into

TOGETHER = 4
"""Lines of 128 channels of at most 128 rows that one bank holds."""
AHEAD = 3
"""Blocks whose rows are asked for before they are turned."""


@dataclass
class Layout(nl.NKIObject):
    """What all blocks share.

    Attributes:
        of: Where an expert's weights lie.
        size: Rows of a block.
        eye: bfloat16 [128, 128].
        psum: Banks in rotation.
        experts: int32 [1, blocks]: of each block.
        tokens: int32 [size, blocks]: of each row. shares: fp32 likewise, how much each row counts.
    """

    of: ExpertRow
    size: int
    eye: nl.ndarray
    psum: Bank
    experts: nl.ndarray
    tokens: nl.ndarray
    shares: nl.ndarray


@nki.jit
def prefill_experts(
    x: nl.ndarray,
    weights: nl.ndarray,
    experts: nl.ndarray,
    tokens: nl.ndarray,
    shares: nl.ndarray,
    places: nl.ndarray,
) -> tuple:
    """The weighted sum of what its experts make of each token: this rank's part, for the graph to sum over ranks.

    All choices of all tokens are laid out in blocks of one expert each, whose number is fixed and enough for any
    routing (`ops.moe.blocks`): nothing is dropped. A block gathers its rows, which TensorE turns, and reads its
    expert's weights once; one that nobody needs reads none. Cores take blocks in turn and meet; then each gathers, for
    half of the tokens, the rows of their choices and adds them up in PSUM. The shared expert is no part of this: of
    all tokens it is a dense block.

    Dimensions:
        T: tokens; K: experts of a token
        B, S: blocks, and rows of one, at most 128
        E: experts; H: hidden size, a multiple of 512; L = H / 128 lines
        I: intermediate size of this rank of an expert, a multiple of 32 up to 128, or of 128; I / 128 * S up to 256

    Args:
        x (nl.ndarray): [T, H], bfloat16, normed
        weights (nl.ndarray): [E, 128, n], bfloat16 or uint8, in the order of `decode_experts_torch.pack_experts`
        experts (nl.ndarray): [1, B], int32, of each block; E of one that is not used
        tokens (nl.ndarray): [S, B], int32, of each row of a block; of padding any
        shares (nl.ndarray): [S, B], float32, how much each row counts; of padding zero
        places (nl.ndarray): [T, K], int32, the row of each choice, row S b + s for row s of block b

    Returns:
        y (nl.ndarray): [T, H], float32
        made (nl.ndarray): [B * S, H], bfloat16, what each row counts for, channel p * L + n at 128 n + p: scratch

    Pseudocode:
        h = silu(x[tokens] gate) * (x[tokens] up), rounded to bfloat16
        made = shares * (h down), rounded to bfloat16
        y = sum over k of made[places[:, k]], in float32
    """
    hidden, blocks, size = x.shape[1], experts.shape[1], tokens.shape[0]
    cores = nl.num_programs()
    core = nl.program_id(0) if cores > 1 else 0
    lines, codes = hidden // TILE, weights.dtype == nl.uint8
    assert hidden % (TOGETHER * TILE) == 0, f"hidden size {hidden} is not a multiple of {TOGETHER * TILE}"
    assert size <= TILE, f"blocks have {size} rows, at most {TILE}"
    assert x.dtype == nl.bfloat16, f"x is {x.dtype}, must be bfloat16"
    assert tokens.shape[1] == blocks, f"there are {blocks} blocks, and tokens of {tokens.shape[1]}"
    of = expert_row(inner_of(weights.shape[2], lines, codes), lines, codes)
    assert 2 * of.blocks * size <= BANK_COLUMNS, f"{size} rows of {of.inner} channels do not fit in a bank: give fewer"
    made = nl.ndarray((blocks * size, hidden), dtype=nl.bfloat16, buffer=nl.shared_hbm)
    y = nl.ndarray((x.shape[0], hidden), dtype=nl.float32, buffer=nl.shared_hbm)
    layout = Layout(
        of=of, size=size, eye=identity(nl.bfloat16), psum=make_banks(), experts=sbuf(nl.int32, (1, blocks)),
        tokens=sbuf(nl.int32, (size, blocks)), shares=sbuf(nl.float32, (size, blocks)),
    )  # fmt: skip
    for dst, src in ((layout.experts, experts), (layout.tokens, tokens), (layout.shares, shares)):
        nisa.dma_copy(dst=dst, src=src)
    # Blocks that are used come first, as many as a token has experts at least.
    slots = expert_slots(weights.dtype, of.size, blocks // cores, places.shape[1] // cores)
    count = (blocks - core + cores - 1) // cores
    for n in range(min(len(slots), count)):
        _load(layout, slots[n], weights, core + n * cores)
    rows = []
    for n in range(min(AHEAD, count)):
        rows.append(_gather(layout, x, core + n * cores))
    turned = _turn(layout, rows[0])
    for n in range(count):
        block, tile = core + n * cores, slots[n % len(slots)]
        if n + AHEAD < count:
            rows.append(_gather(layout, x, block + AHEAD * cores))
        h = _inner(layout, turned, tile)
        # TensorE turns the next block's rows while gates and ups of this one pass the other engines.
        if n + 1 < count:
            turned = _turn(layout, rows[n + 1])
        _outer(layout, h, tile, block, made)
        if n + len(slots) < count:
            _load(layout, tile, weights, block + len(slots) * cores)
    nisa.core_barrier(data=made, cores=(0, 1))
    parts = split(x.shape[0], TILE)
    for n in range(core, len(parts), cores):
        _combine(layout, parts[n], places, made, y)
    return y, made


def _load(layout: Layout, dst: nl.ndarray, weights: nl.ndarray, block: int) -> None:
    number = sbuf(nl.int32, (1, 1))
    nisa.tensor_copy(dst=number, src=layout.experts[:, block : block + 1], engine=nisa.engine.gpsimd)
    load_expert(dst, weights, layout.of, number, False)


def _gather(layout: Layout, x: nl.ndarray, block: int) -> nl.ndarray:
    """A block's rows, bfloat16 [size, H]."""
    size, hidden = layout.size, x.shape[1]
    index, rows = sbuf(nl.int32, (size, 1)), sbuf(nl.bfloat16, (size, hidden))
    nisa.tensor_copy(dst=index, src=layout.tokens[:, block : block + 1], engine=nisa.engine.gpsimd)
    nisa.dma_copy(dst=rows, src=x.ap(pattern=[[hidden, size], [1, hidden]], vector_offset=index, indirect_dim=0))
    return rows


def _turn(layout: Layout, rows: nl.ndarray) -> nl.ndarray:
    """Rows as moving operands: bfloat16 [128, lines, size], channel p * lines + n on partition p of line n."""
    size, hidden, lines = layout.size, rows.shape[1], layout.of.lines
    out = sbuf(nl.bfloat16, (TILE, lines, size))
    for first in range(0, lines, TOGETHER):
        bank = layout.psum.take()[:, 0 : TOGETHER * size]
        for n in range(TOGETHER):
            line = rows.ap(pattern=[[hidden, size], [lines, TILE]], offset=first + n)
            turn_into(bank[:, n * size : (n + 1) * size], line, layout.eye)
        engine = nisa.engine.vector if first % (2 * TOGETHER) == 0 else nisa.engine.scalar
        here = out[:, first : first + TOGETHER]
        nisa.tensor_copy(dst=here, src=bank.reshape((TILE, TOGETHER, size)), engine=engine)
    return out


def _inner(layout: Layout, turned: nl.ndarray, tile: nl.ndarray) -> nl.ndarray:
    """h, bfloat16 [width, blocks of channels, size]."""
    of, size = layout.of, layout.size
    bank = layout.psum.take()
    for side in range(2 * of.blocks):
        for n in range(of.lines):
            at = (n * 2 * of.blocks + side) * of.width
            # [h, i] x [h, t] -> [i, t]
            nisa.nc_matmul(
                dst=bank[0 : of.width, side * size : (side + 1) * size],
                stationary=numbers_of(tile[:, at : at + of.width]), moving=turned[:, n], accumulate=n > 0,
            )  # fmt: skip
    h = sbuf(nl.bfloat16, (of.width, of.blocks, size))
    for block in range(of.blocks):
        opened = sbuf(nl.float32, (of.width, size))
        gates = bank[0 : of.width, block * size : (block + 1) * size]
        ups = bank[0 : of.width, (of.blocks + block) * size : (of.blocks + block + 1) * size]
        if of.factors > 0:
            by = scales_of(tile, of)[0 : of.width]
            up = by[:, of.blocks + block : of.blocks + block + 1]
            nisa.activation(dst=opened, op=nl.silu, data=gates, scale=by[:, block : block + 1])
            nisa.scalar_tensor_tensor(
                dst=h[:, block], data=ups, op0=nl.multiply, operand0=up, op1=nl.multiply, operand1=opened
            )
        else:
            nisa.activation(dst=opened, op=nl.silu, data=gates)
            nisa.tensor_tensor(dst=h[:, block], data1=ups, data2=opened, op=nl.multiply, engine=nisa.engine.vector)
    return h


def _outer(layout: Layout, h: nl.ndarray, tile: nl.ndarray, block: int, made: nl.ndarray) -> None:
    """Rows of a block of `made` = shares * (h down)."""
    of, size, hidden = layout.of, layout.size, made.shape[1]
    share, out = layout.shares[:, block : block + 1], sbuf(nl.bfloat16, (size, hidden))
    scaled = _scaled(layout, h, tile, 0) if of.factors > 0 else out
    for first in range(0, of.lines, TOGETHER):
        sums = layout.psum.take()[0:size, 0 : TOGETHER * TILE]
        if of.factors > 0:
            lines = scaled
            # TensorE has the next lines' products while these are scaled.
            if first + TOGETHER < of.lines:
                scaled = _scaled(layout, h, tile, first + TOGETHER)
            for n in range(TOGETHER):
                # [c, t] -> [t, c]
                turn_into(sums[:, n * TILE : (n + 1) * TILE], lines[:, n], layout.eye)
        else:
            for n in range(of.blocks):
                at = of.down + (n * of.lines + first) * TILE
                # [i, t] x [i, c] -> [t, c]
                nisa.nc_matmul(
                    dst=sums, stationary=h[:, n], moving=tile[0 : of.width, at : at + TOGETHER * TILE],
                    accumulate=n > 0,
                )  # fmt: skip
        here = out[:, first * TILE : (first + TOGETHER) * TILE]
        engine = nisa.engine.vector if first % (2 * TOGETHER) == 0 else nisa.engine.scalar
        nisa.tensor_scalar(dst=here, data=sums, op0=nl.multiply, operand0=share, engine=engine)
    nisa.dma_copy(dst=made[block * size : (block + 1) * size], src=out)


def _scaled(layout: Layout, h: nl.ndarray, tile: nl.ndarray, first: int) -> nl.ndarray:
    """Of lines from `first` on, scaled by channel: bfloat16 [128, 4, size], channels on partitions."""
    of, size = layout.of, layout.size
    bank, scaled = layout.psum.take()[:, 0 : TOGETHER * size], sbuf(nl.bfloat16, (TILE, TOGETHER, size))
    for n in range(TOGETHER):
        for block in range(of.blocks):
            at = of.down + (block * of.lines + first + n) * TILE
            # [i, c] x [i, t] -> [c, t]
            nisa.nc_matmul(
                dst=bank[:, n * size : (n + 1) * size], stationary=numbers_of(tile[0 : of.width, at : at + TILE]),
                moving=h[:, block], accumulate=block > 0,
            )  # fmt: skip
    every = sbuf(nl.float32, (TILE, TOGETHER))
    begin = 2 * of.blocks + first
    nisa.tensor_copy(dst=every, src=scales_of(tile, of)[:, begin : begin + TOGETHER], engine=nisa.engine.gpsimd)
    by = every.ap(pattern=[[TOGETHER, TILE], [1, TOGETHER], [0, size]])
    nisa.tensor_tensor(
        dst=scaled, data1=bank.reshape((TILE, TOGETHER, size)), data2=by, op=nl.multiply, engine=nisa.engine.vector
    )
    return scaled


def _combine(layout: Layout, part: tuple, places: nl.ndarray, made: nl.ndarray, y: nl.ndarray) -> None:
    """y of tokens [first, last) = the sum of the rows of their choices."""
    count, hidden, top_k, lines = part[1] - part[0], y.shape[1], places.shape[1], layout.of.lines
    index, rows, out = sbuf(nl.int32, (count, top_k)), [], sbuf(nl.float32, (count, lines * TILE))
    nisa.dma_copy(dst=index, src=places[part[0] : part[1]])
    for k in range(top_k):
        row, place = sbuf(nl.bfloat16, (count, hidden)), sbuf(nl.int32, (count, 1))
        nisa.tensor_copy(dst=place, src=index[:, k : k + 1], engine=nisa.engine.gpsimd)
        source = made.ap(pattern=[[hidden, count], [1, hidden]], vector_offset=place, indirect_dim=0)
        nisa.dma_copy(dst=row, src=source)
        rows.append(row)
    for first in range(0, lines, TOGETHER):
        bank = layout.psum.take()[0:count, 0 : TOGETHER * TILE]
        for k in range(top_k):
            # Their sum: [t, t] x [t, c] -> [t, c]
            nisa.nc_matmul(
                dst=bank, stationary=layout.eye[0:count, 0:count],
                moving=rows[k][:, first * TILE : (first + TOGETHER) * TILE], is_stationary_onezero=True,
                accumulate=k > 0,
            )  # fmt: skip
        # Channel p * lines + n is at 128 n + p.
        here = out.ap(pattern=[[hidden, count], [1, TOGETHER], [lines, TILE]], offset=first)
        engine = nisa.engine.vector if first % (2 * TOGETHER) == 0 else nisa.engine.scalar
        nisa.tensor_copy(dst=here, src=bank.reshape((count, TOGETHER, TILE)), engine=engine)
    nisa.dma_copy(dst=y[part[0] : part[1]], src=out)
