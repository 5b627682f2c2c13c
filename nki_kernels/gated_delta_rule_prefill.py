"""Gated delta rule over a prompt: all heads of a core and every chunk in one launch."""

from dataclasses import dataclass

import nki
import nki.isa as nisa
import nki.language as nl

from .delta_rule_masks import Constants, make_buffers, make_constants
from .delta_rule_scan import Scan, make_scan, scan_output, scan_state
from .delta_rule_solve import (
    Tile,
    apply_inverse,
    compare,
    correlate,
    level_residual,
    level_update,
    load,
    make_system,
    measure,
    scale_keys,
    scale_queries,
    split_system,
    start_solve,
)
from .delta_rule_tiles import LEVELS, TILE, Bank, index_tiles, make_banks, on_every_row, sbuf, split

START, SOLVE = 5, 6
"""Stages of the first block inverses, and of the first solve level. A level takes two."""
STAGES = SOLVE + 2 * LEVELS + 3


@nki.jit
def gated_delta_rule_prefill(
    q: nl.ndarray,
    k: nl.ndarray,
    v: nl.ndarray,
    g: nl.ndarray,
    beta: nl.ndarray,
    state: nl.ndarray,
    valid: nl.ndarray,
    bank: nl.ndarray,
    slots: nl.ndarray,
    boundaries: tuple = (),
) -> tuple:
    """The gated delta rule over one sequence, from a state to a state, with checkpoints on the way.

    Tokens go in tiles of 128, two chunks. What does not need the state is done for all heads of a tile at once: decays,
    k k^T and q k^T (once a key head), the inverse T = (I + A)^-1 and both its applications. Only V' = U - W S and the
    new S are sequential. A tile goes through 21 short stages and is followed by the next one at two stages' distance,
    so that every engine has several tiles' work at hand.

    Dimensions:
        N: tokens, padding counted
        HK, H: key and value heads, H a multiple of HK; with two cores each takes half of both
        D: key and value head size, 128

    Args:
        q (nl.ndarray): [N, HK, D], queries, not normalised; float32 or bfloat16
        k (nl.ndarray): [N, HK, D], keys, not normalised, of q's type
        v (nl.ndarray): [N, H, D], values, of q's type
        g (nl.ndarray): [N, H], float32, log of the decay, <= 0
        beta (nl.ndarray): [N, H], float32, write strength
        state (nl.ndarray): [H, D, D], float32, key dimension first; not changed
        valid (nl.ndarray): [1, 2], int32, first and last + 1 of the tokens that are not padding. Padding must be
            finite and changes nothing; its outputs mean nothing
        bank (nl.ndarray): [entries, H, D, D], float32, states; written in place
        slots (nl.ndarray): [1, n + 1], int32, the entry for the state at each of the n boundaries, and for that after
            the last token; an entry past the last one is skipped
        boundaries (tuple): ascending chunk counts b, known at compile time: the state after 64 * b tokens

    Returns:
        o (nl.ndarray): [N, H, D], float32
        bank (nl.ndarray): the argument

    Notes:
        Numbers. State, gates, sums and the products that write to the state or to the output within a tile are
        float32. With bfloat16 inputs the operands of the other products are bfloat16; A, whose rounding errors would
        add up over a tile of correlated keys, is split into two bfloat16 parts. Keys and queries enter products as
        they came: their norms are applied to rows of results.

    Pseudocode:
        r = 1 / sqrt(|k|^2 + eps); c = beta r^2; rq = 1 / sqrt(D (|q|^2 + eps))
        E_ij = e^(G_i - G_j) for j <= i, else 0
        L^T = I + diag(c) (k k^T o E^T) above the diagonal
        T = L^-1 by the masked 2x2 recursion, T^T carried beside it
        U = T (v / r); W = T (e^G k); scores = q k^T o E
        for each tile:
            V' = c (U - W S)
            o = rq ((e^G q) S + scores V')
            for each half: S = e^(G_h) S + (e^(G_h - G) k)^T V', G_h the sum of g over the half
    """
    tokens, key_heads, size = k.shape
    heads = v.shape[1]
    cores = nl.num_programs()
    assert size == TILE, f"head size is {size}, must be {TILE}"
    assert heads % key_heads == 0, f"{heads} value heads do not divide among {key_heads} key heads"
    assert key_heads % cores == 0, f"{key_heads} key heads do not divide among {cores} cores"
    o = nl.ndarray((tokens, heads, TILE), dtype=nl.float32, buffer=nl.shared_hbm)
    core = nl.program_id(0) if cores > 1 else 0
    keys = (core * (key_heads // cores), (core + 1) * (key_heads // cores))
    values = (core * (heads // cores), (core + 1) * (heads // cores))
    count = (tokens + TILE - 1) // TILE
    # Stages by which a tile follows the one before it: what a tile waits for, the others' stages fill. SBUF holds about
    # 10 tiles of 6 heads in bfloat16.
    skew = max(2, (values[1] - values[0]) * (2 if k.dtype == nl.bfloat16 else 4) // 6)

    psum = make_banks()
    live = _live_rows(valid, count, psum)
    tiles = [load(q, k, v, g, beta, keys, values, 0)]
    const = make_constants(k.dtype)
    for n in range(1, min(count, 3)):
        tiles.append(load(q, k, v, g, beta, keys, values, n * TILE))
    scan = make_scan(state, values, k.dtype)
    places = index_tiles(slots, len(boundaries) + 1, nisa.engine.gpsimd)
    saver = Saver(bank=bank, slots=tuple(places), boundaries=boundaries, heads=values)
    for turn in range(STAGES + skew * (count - 1)):
        if turn % skew == 0 and turn > 0 and len(tiles) < count:
            tiles.append(load(q, k, v, g, beta, keys, values, len(tiles) * TILE))
        if turn == 1:
            make_buffers(const, values[1] - values[0])
        for n in range(count):
            stage = turn - n * skew
            if stage >= 0 and stage < STAGES - 2:
                _stage(tiles[n], n, stage, const, psum, live)
            elif stage == STAGES - 2:
                scan_state(tiles[n], scan, psum)
                _save_boundaries(n, scan, saver)
                if n + 1 == count:
                    _save(scan.state, len(boundaries), saver)
            elif stage == STAGES - 1:
                start = n * TILE
                scan_output(tiles[n], scan, psum, o[start : start + tiles[n].rows, values[0] : values[1]])
    return o, bank


@dataclass
class Saver(nl.NKIObject):
    """Where states go: bank, n + 1 slots in SBUF, [1, 1] each, boundaries, value heads of this core."""

    bank: nl.ndarray
    slots: tuple
    boundaries: tuple
    heads: tuple


def _live_rows(valid: nl.ndarray, count: int, psum: Bank) -> nl.ndarray:
    """fp32 [i, tile]: 1 where token tile * 128 + i is not padding."""
    given, row, bounds = sbuf(nl.int32, (1, 2)), sbuf(nl.float32, (1, 2)), sbuf(nl.float32, (TILE, 2))
    position, begun = sbuf(nl.float32, (TILE, count)), sbuf(nl.float32, (TILE, count))
    nisa.dma_copy(dst=given, src=valid)
    nisa.tensor_copy(dst=row, src=given, engine=nisa.engine.vector)
    nisa.tensor_copy(dst=bounds, src=on_every_row(row, psum), engine=nisa.engine.vector)
    nisa.iota(dst=position, pattern=[[TILE, count]], channel_multiplier=1)
    nisa.tensor_scalar(dst=begun, data=position, op0=nl.greater_equal, operand0=bounds[:, 0:1])
    nisa.tensor_scalar(dst=position, data=position, op0=nl.less, operand0=bounds[:, 1:2])
    nisa.tensor_tensor(dst=position, data1=position, data2=begun, op=nl.multiply)
    return position


def _stage(tile: Tile, n: int, stage: int, const: Constants, psum: Bank, live: nl.ndarray) -> None:
    """One stage of tile n before its scan. What only the scan needs fills in between the solve levels."""
    if stage == 0:
        measure(tile, const, psum, live[:, n : n + 1])
    elif stage == 1:
        compare(tile, const, psum)
    elif stage == 2:
        correlate(tile, psum)
    elif stage == 3:
        make_system(tile)
        split_system(tile)
    elif stage == START:
        start_solve(tile, const, psum)
    elif stage >= SOLVE and stage < SOLVE + 2 * LEVELS:
        level = (stage - SOLVE) // 2
        if (stage - SOLVE) % 2 == 0:
            level_residual(tile, const, psum, level, n)
        else:
            level_update(tile, const, psum, level, n)
        if stage == SOLVE + 1:
            scale_keys(tile)
        if stage == SOLVE + 3:
            scale_queries(tile, const, psum)
    elif stage == SOLVE + 2 * LEVELS:
        apply_inverse(tile, psum)


def _save_boundaries(n: int, scan: Scan, saver: Saver) -> None:
    """The checkpoints in the middle of tile n and at its end, if they may be wanted."""
    for at in range(len(saver.boundaries)):
        if saver.boundaries[at] == 2 * n + 1:
            _save(scan.middle, at, saver)
        elif saver.boundaries[at] == 2 * n + 2:
            _save(scan.state, at, saver)


def _save(state: nl.ndarray, at: int, saver: Saver) -> None:
    """Copy a state [d, H, v] to the entry that `slots` names at `at`, or nowhere if that is past the last one."""
    for part in split(saver.heads[1] - saver.heads[0], 4):
        dst = saver.bank.ap(
            pattern=[[TILE, TILE], [TILE * TILE, part[1] - part[0]], [1, TILE]],
            offset=(saver.heads[0] + part[0]) * TILE * TILE, scalar_offset=saver.slots[at],
            indirect_dim=0,
        )  # fmt: skip
        nisa.dma_copy(dst=dst, src=state[:, part[0] : part[1]], oob_mode=nisa.oob_mode.skip)
