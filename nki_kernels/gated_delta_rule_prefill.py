"""Gated delta rule over a prompt: all heads of a core and every chunk in one launch."""

from dataclasses import dataclass

import nki
import nki.isa as nisa
import nki.language as nl

from .delta_rule_gates import Gates, first_gates, load_beta, load_gates, mask_gates, round_gates, sum_gates
from .delta_rule_masks import Constants, make_constants, make_sums
from .delta_rule_scan import Scan, load_state, make_operand, make_scan, scan_output, scan_read, scan_solve, scan_write
from .delta_rule_solve import (
    last_residual,
    last_update,
    level_residual,
    level_update,
    prepare,
    scale_rows,
    spread,
    turn_heads,
    turn_pairs,
)
from .delta_rule_system import (
    Tile,
    clear_room,
    fade,
    load_rows,
    make_room,
    make_tile,
    mask_values,
    normalise,
    open_gates,
    score,
    system,
    triangle,
    turn,
)
from .delta_rule_tiles import LEVELS, TILE, Bank, index_tiles, make_banks, sbuf, split

SOLVE = 5
"""Stage of the first solve level. A level takes three."""
SCAN = SOLVE + 3 * LEVELS + 2
STAGES = SCAN + 4
SKEW = 4
"""Stages by which a tile follows the one before it: what a tile waits for, the others' stages fill."""
AHEAD = 8
"""Stages by which a tile is asked for before its first."""
ROOMS = STAGES // SKEW + 1
"""Tiles at work at once."""
SUMS = 8
"""Stage of the first tile by which the sums of gates are made: those that a solve needs first come later than that."""


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
    k k^T and q k^T (once a key head), and the inverse T of the triangular system. Only Z = v - e^G k S, T Z and the new
    S are sequential. A tile goes through short stages, in each of which TensorE has one run of products at most, and is
    followed by the next tile at a few stages' distance: every engine has several tiles' work at hand, in order.

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
        Numbers. The state, gates and sums are float32. With float32 inputs so is all else. With bfloat16 inputs the
        operands of products are float16, three bits more: keys and queries have unit length, decays and T are bounded
        by one, and values, states and their differences must stay below 65504. Sums of gates are taken over ranges of
        tokens, never as differences of running sums.

        T by the masked 2x2 recursion, two heads a product: see `delta_rule_solve`.

    Pseudocode:
        q, k = q / sqrt(|q|^2 + eps) / sqrt(D), k / sqrt(|k|^2 + eps)
        E_ij = beta_j e^(G_i - G_j) for j <= i, else 0
        T = (I + k k^T o E below the diagonal)^-1; scores = q k^T o E
        for each tile:
            Z = v - e^G k S
            o = e^G q S + scores T Z
            S = e^(G_C) S + (beta e^(G_C - G) k)^T T Z, by halves where a checkpoint may be wanted between them
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
    unit = nl.float32 if k.dtype == nl.float32 else nl.float16

    psum, position, given = make_banks(), sbuf(nl.float32, (TILE, count)), sbuf(nl.int32, (1, 2))
    zero, warm = sbuf(unit, (TILE, 1)), sbuf(nl.float32, (TILE, 1))
    nisa.memset(dst=zero, value=0.0, engine=nisa.engine.vector)
    nisa.activation(dst=warm, op=nl.exp, data=zero)  # its table is loaded while the first tile is on its way
    work = Work(q=q, k=k, v=v, keys=keys, values=values, unit=unit, rooms=[], tiles=[])
    _add_tile(work)
    load_rows(work.tiles[0], work.tiles[0].kq[:, 0:1], k, keys)
    gates = load_gates(g, values, unit)
    nisa.dma_copy(dst=given, src=valid)
    load_beta(gates, beta, values[0])
    load_rows(work.tiles[0], work.tiles[0].kq[:, 1:2], q, keys)
    load_rows(work.tiles[0], work.tiles[0].v, v, values)
    nisa.iota(dst=position, pattern=[[TILE, count]], channel_multiplier=1)
    const, scan = make_constants(unit), make_scan(values[1] - values[0], unit)
    saver = Saver(bank=bank, slots=(), boundaries=boundaries, heads=values)
    for now in range((count - 1) * SKEW + STAGES):
        if now == 1:
            load_state(scan, state, values[0])
            saver.slots = tuple(index_tiles(slots, len(boundaries) + 1, nisa.engine.gpsimd))
        for n in range(count):
            stage = now - n * SKEW
            if stage >= 0 and stage < SCAN:
                tile = work.tiles[n]
                _stage(tile, stage, gates, const, psum)
                if n == 0:
                    _gate_stage(stage, gates, given, position, const, psum)
                    if stage == SUMS:
                        make_operand(scan)
            elif stage >= SCAN and stage < STAGES:
                tile = work.tiles[n]
                start = n * TILE
                _scan_stage(tile, stage - SCAN, scan, gates, saver, psum, o[start : start + tile.rows])
                if n + 1 == count and stage == SCAN + 2:
                    _save(scan.state, len(boundaries), saver)
        while len(work.tiles) < count and len(work.tiles) * SKEW - AHEAD <= now:
            _load_tile(work)
    return o, bank


@dataclass
class Work(nl.NKIObject):
    """Tokens in HBM, (first, last + 1) of this core's heads, the type of operands, and the tiles so far.

    Tiles have the rooms in turn.
    """

    q: nl.ndarray
    k: nl.ndarray
    v: nl.ndarray
    keys: tuple
    values: tuple
    unit: nl.dtype
    rooms: list
    tiles: list


def _add_tile(work: Work) -> Tile:
    n = len(work.tiles)
    if n < ROOMS:
        work.rooms.append(make_room(work.unit, work.values[1] - work.values[0]))
    tile = make_tile(work.k, work.v, work.keys, work.values, n, work.rooms[n % ROOMS])
    if n < ROOMS:
        clear_room(tile)
    work.tiles.append(tile)
    return tile


def _load_tile(work: Work) -> None:
    tile = _add_tile(work)
    load_rows(tile, tile.kq[:, 0:1], work.k, work.keys)
    load_rows(tile, tile.kq[:, 1:2], work.q, work.keys)
    load_rows(tile, tile.v, work.v, work.values)


@dataclass
class Saver(nl.NKIObject):
    """Where states go: bank, n + 1 slots in SBUF, [1, 1] each, boundaries, value heads of this core."""

    bank: nl.ndarray
    slots: tuple
    boundaries: tuple
    heads: tuple


def _stage(tile: Tile, stage: int, gates: Gates, const: Constants, psum: Bank) -> None:
    """One stage of a tile before its scan. What is not needed for the solve is done between its first levels."""
    if stage == 0:
        normalise(tile, 0)
        if tile.place == 0:
            round_gates(gates)
        open_gates(tile, gates)
        triangle(tile.close, gates.g, tile.place, const)
        prepare(tile, const)
    elif stage == 1:
        turn(tile, 0, const, psum)
        triangle(tile.beta, gates.beta, tile.place, const)
    elif stage == 2:
        fade(tile, gates, const, psum)
    elif stage == 3:
        system(tile, gates, const, psum)
    elif stage == 4:
        spread(tile, 1)
        turn_pairs(tile, const, psum)
    elif stage < SOLVE + 3 * LEVELS:
        if stage == SOLVE + 1:
            normalise(tile, 1)
            mask_values(tile, gates)
        elif stage == SOLVE + 4:
            turn(tile, 1, const, psum)
        elif stage == SOLVE + 7:
            score(tile, psum)
        _level(tile, (stage - SOLVE) // 3, (stage - SOLVE) % 3, gates, const, psum)
    elif stage == SOLVE + 3 * LEVELS:
        last_residual(tile, gates, psum)
    else:
        last_update(tile, psum)


def _level(tile: Tile, level: int, part: int, gates: Gates, const: Constants, psum: Bank) -> None:
    if part == 0:
        level_residual(tile, const, psum, level)
    elif part == 1:
        level_update(tile, psum, level)
    elif level + 1 < LEVELS:
        turn_pairs(tile, const, psum)
    else:
        turn_heads(tile, const, psum)
        scale_rows(tile, gates)


def _gate_stage(
    stage: int, gates: Gates, valid: nl.ndarray, position: nl.ndarray, const: Constants, psum: Bank
) -> None:
    """What the gates of all tiles need, as late as the first tile's stages allow."""
    if stage == 0:
        mask_gates(gates, valid, position, psum)
    elif stage == 1:
        first_gates(gates, const, psum)
    elif stage == SUMS - 3:
        make_sums(const)
    elif stage == SUMS:
        sum_gates(gates, const, psum)


def _scan_stage(tile: Tile, stage: int, scan: Scan, gates: Gates, saver: Saver, psum: Bank, o: nl.ndarray) -> None:
    """One stage of a tile's scan. o: the tile's rows in HBM, [rows, H of all cores, v]."""
    middle = False
    for boundary in saver.boundaries:
        middle = middle or boundary == 2 * tile.place + 1
    if stage == 0:
        scan_read(tile, scan, gates, psum)
    elif stage == 1:
        scan_solve(tile, scan, gates, psum, middle)
    elif stage == 2:
        scan_write(tile, scan, gates, psum, middle)
        _save_boundaries(tile.place, scan, saver)
    else:
        scan_output(tile, scan, gates, psum, o[:, saver.heads[0] : saver.heads[1]])


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
