"""Gated delta rule for a certain token and drafts behind it, a row of a batch each: verifying without rolling back."""

from dataclasses import dataclass

import nki
import nki.isa as nisa
import nki.language as nl

from .delta_rule_advance import (
    Update,
    add_keys,
    add_moves,
    fade_moves,
    fade_state,
    find_first,
    first_finds,
    first_writes,
    make_update,
    turn_first,
)
from .delta_rule_outputs import (
    Outcome,
    Reads,
    begin_reads,
    finish,
    give_out,
    go_on,
    make_outcomes,
    make_reads,
    outputs_of,
    turn_out,
)
from .delta_rule_tiles import BANK_COLUMNS, TILE, Bank, make_banks, sbuf, split
from .delta_rule_verify import (
    SCALE,
    Columns,
    Decays,
    Relations,
    Sizes,
    Solution,
    Tokens,
    far_decays,
    fill_system,
    make_columns,
    make_decays,
    make_given,
    make_relations,
    make_sizes,
    make_system,
    make_tokens,
    multiply,
    near_decays,
    normalise,
    norms,
    score,
    solve_turns,
    turn,
)

ROOM, BESIDE = 192, 3
"""KiB of SBUF: a state of a head takes one, old and new, and what is beside the states as much as so many more."""
START, GROUP = 2, 4
"""Sequences whose first tokens' rows are turned together, and whose outputs are."""


@nki.jit
def gated_delta_rule_verify(
    q: nl.ndarray,
    k: nl.ndarray,
    v: nl.ndarray,
    g: nl.ndarray,
    beta: nl.ndarray,
    states: nl.ndarray,
    pending: nl.ndarray,
    relations: nl.ndarray,
    places: nl.ndarray,
    held: nl.ndarray,
) -> tuple:
    """A token that is certain and drafts behind it for every sequence of a batch, on top of drafts that were accepted.

    A state has no draft in it. A draft leaves its record, with which it can be taken in later without the state: its
    unit key, the rows that it writes there, its gates. Each sequence's state takes in the records that are named, then
    its first token, and is stored; its other tokens are run on top of that and leave records. So a state is read once
    and written once, whatever the number of drafts.

    Dimensions:
        B: sequences
        M: tokens of each, the first of them certain
        N: places of records for each, M - 1 at least
        C: checkpoints, one at least
        HK, H: key and value heads, H a multiple of HK; with two cores each takes half of both
        D: key and value head size, 128
        W: columns of a key head's record, D + (D + 1) H / HK

    Args:
        q (nl.ndarray): [B, M, HK, D], queries, not normalised; float32 or bfloat16
        k (nl.ndarray): [B, M, HK, D], keys, not normalised, of q's type
        v (nl.ndarray): [B, M, H, D], values, of q's type
        g (nl.ndarray): [B, M, H], float32, log of the decay
        beta (nl.ndarray): [B, M, H], float32, write strength
        states (nl.ndarray): [entries, H, D, D], float32, key dimension first; written in place
        pending (nl.ndarray): [lanes, N, HK, W], float32, records; the first is zero. Written in place
        relations (nl.ndarray): float32, what `delta_rule_relations.relations` gives of B, M, N and the checkpoints
        places (nl.ndarray): [1, 3 B + 2 C], int32: entries of the sequences' states, then those of the checkpoints'
            sequences; entries for the states in the same order, past the last: not kept; lanes whose first M - 1
            records become those of the sequences' drafts, past the last: not kept. What is written is named once
        held (nl.ndarray): [(B + C) N, 1], int32, the records that each state takes in, in order, by lane * N + place;
            0, a record of zeros, for none

    Returns:
        o (nl.ndarray): [B, M, H, D], float32
        states (nl.ndarray): the argument
        pending (nl.ndarray): the argument

    Notes:
        All arithmetic is float32. What tokens are to each other is solved before a state is asked, as a triangular
        system of M unknowns, and then a state is multiplied once for what all of them write and give out. What the
        first token writes needs no solution and goes ahead of it, so that a state leaves while the rest is made. The
        state itself only passes VectorE, which adds to it what records and the token write, a product of N + 1 rows.

        A product finds by zeros in the table which rows are a sequence's: rows of all sequences are in one tile, and
        what does not ask a state is one instruction for all of them. Sequences behind the first GROUP have what their
        first tokens write from the solution, which is there by then.

    Pseudocode:
        q, k = q / sqrt(D (|q|^2 + eps)), k / sqrt(|k|^2 + eps)
        for each sequence, then each checkpoint:
            for each record held: S = e^g S + k d^T
            for each token, of a checkpoint the first if it counts:
                S = e^g S; d = beta (v - k^T S); S = S + k d^T; o = q^T S
                first token: store S, else: keep k, d, g
    """
    batch, tokens, key_heads, size = k.shape
    heads, drafts, checks = v.shape[2], pending.shape[1], (places.shape[1] - 3 * batch) // 2
    cores = nl.num_programs()
    assert size == TILE, f"head size is {size}, must be {TILE}"
    assert heads % key_heads == 0, f"{heads} value heads do not divide among {key_heads} key heads"
    assert key_heads % cores == 0, f"{key_heads} key heads do not divide among {cores} cores"
    core = nl.program_id(0) if cores > 1 else 0
    of = make_sizes(batch, tokens, drafts, checks, key_heads // cores, heads // cores, relations.shape[0])
    _check(of, places)
    o = nl.ndarray((batch, tokens, heads, TILE), dtype=nl.float32, buffer=nl.shared_hbm)
    hbm = Memory(
        o=o, states=states, pending=pending, key=core * of.key_heads, head=core * of.heads,
        piece=min(4, (of.heads + 2) // 3 if batch == 1 else (of.heads + 1) // 2), target=[], lanes=[],
    )  # fmt: skip

    f32, vector, pool = nl.float32, nisa.engine.vector, nisa.dge_mode.swdge
    made, table, ones, warm = make_tokens(of), sbuf(f32, relations.shape), sbuf(f32, (TILE, TILE)), sbuf(f32, (TILE, 1))
    nisa.memset(dst=ones, value=1.0, engine=vector)
    nisa.activation(dst=warm, op=nl.exp, data=ones[:, 0:1])  # its table is loaded while the inputs come
    keys, queries = sbuf(k.dtype, (of.fresh, of.key_heads, TILE)), sbuf(q.dtype, (of.fresh, of.key_heads, TILE))
    values, records = sbuf(v.dtype, (of.fresh, of.heads, TILE)), sbuf(nl.int32, held.shape)
    where, kept = sbuf(nl.int32, places.shape), batch + checks
    nisa.dma_copy(dst=where, src=places)
    nisa.dma_copy(dst=records, src=held, dge_mode=pool)
    nisa.dma_copy(dst=keys, src=_rows_of(k, of.fresh, hbm.key, of.key_heads))
    nisa.dma_copy(dst=queries, src=_rows_of(q, of.fresh, hbm.key, of.key_heads), dge_mode=pool)
    load_gates(of, hbm, made, g, beta)
    nisa.dma_copy(dst=table, src=relations)
    load_records(of, hbm, made, records)
    nisa.dma_copy(dst=values, src=_rows_of(v, of.fresh, hbm.head, of.heads), dge_mode=pool)
    # All are asked for before the first is written: who does not know that entries differ lets a read await a write.
    old: list = []
    for index in _indices(where, 0, kept, vector):
        old.append(load_state(of, hbm, index))
    hbm.target = _indices(where, kept, kept, nisa.engine.gpsimd)
    hbm.lanes = _indices(where, 2 * kept, batch, nisa.engine.gpsimd)

    tied = make_relations(table, of)
    near, given = make_given(of, tied, of.fresh), make_given(of, tied, of.known)
    work = Work(
        of=of, hbm=hbm, tied=tied, tokens=made, columns=make_columns(of), decays=make_decays(of),
        update=make_update(of), solution=Solution(lower=make_system(of), near=near, given=given, found=near),
        reads=make_reads(of), old=old, psum=make_banks(),
    )  # fmt: skip
    _relate(work, keys, queries, values, ones)
    _run(work)
    return o, states, pending


@dataclass
class Memory(nl.NKIObject):
    """HBM: output, states and records; this core's first key and value head; the most heads of a transfer.

    Attributes:
        target, lanes: indices of the states and of the records written, [1, 1] each.
    """

    o: nl.ndarray
    states: nl.ndarray
    pending: nl.ndarray
    key: int
    head: int
    piece: int
    target: list
    lanes: list


@dataclass
class Work(nl.NKIObject):
    """All that a launch has at hand; `old`: the states as they were, fp32 [d, H, v] each."""

    of: Sizes
    hbm: Memory
    tied: Relations
    tokens: Tokens
    columns: Columns
    decays: Decays
    update: Update
    solution: Solution
    reads: Reads
    old: list
    psum: Bank


def _check(of: Sizes, places: nl.ndarray) -> None:
    """Whether the sizes fit."""
    states, tokens = of.batch + of.checks, of.tokens
    assert tokens <= of.drafts + 1, f"{tokens - 1} drafts, there are {of.drafts} places for records"
    assert of.checks > 0, f"{places.shape[1]} places of {of.batch} sequences, must be {3 * of.batch + 2} at least"
    assert of.rows <= TILE, f"{of.batch} sequences of {tokens} tokens and {of.drafts} drafts are over {TILE} rows"
    assert of.fresh <= TILE // 2, f"{of.fresh} new tokens, at most {TILE // 2}"
    most = ROOM // of.heads - BESIDE
    assert states <= most, f"{states} states of {of.heads} heads, at most {most}"
    assert of.heads * (1 + of.drafts + tokens) <= BANK_COLUMNS, f"{of.heads} heads of {of.drafts} drafts are too many"


def _relate(work: Work, keys: nl.ndarray, queries: nl.ndarray, values: nl.ndarray, ones: nl.ndarray) -> None:
    """All that does not ask a state, but for turns of the solution; and what the first sequences' first tokens write.

    What new tokens are to each other is made while the records are on their way. The order is that in which things
    come, and in which the engines are free.
    """
    of, tied, made, columns, decays, psum = work.of, work.tied, work.tokens, work.columns, work.decays, work.psum
    update, solution, fresh = work.update, work.solution, of.fresh
    known_keys, new_keys, new_queries = columns.key[:, :, 0 : of.known], columns.key[:, :, 0:fresh], columns.query
    normalise(made.record[0:fresh, :, 0:TILE], keys, norms(keys), 1.0)
    turn(new_keys, made.record[0:fresh], 0, nisa.engine.scalar, psum)
    norm = norms(queries)
    near_decays(of, tied, made, decays, ones, psum)
    normalise(made.query[0:fresh], queries, norm, SCALE)
    near = multiply(new_keys, new_keys, psum)
    turn(new_queries, made.query[0:fresh], 0, nisa.engine.scalar, psum)
    far_decays(of, tied, made, decays, ones, psum)
    fill_system(of, tied, made, decays, near, solution.lower, 0, fresh)
    turn(columns.key[:, :, fresh:], made.record, fresh, nisa.engine.vector, psum)
    near = multiply(new_keys, new_queries, psum)
    far = multiply(known_keys, columns.key[:, :, 0 : fresh : of.tokens], psum)
    score(of, tied, decays.near, near, solution.near)
    first_writes(of, tied, decays, far, update)
    first_finds(of, columns, decays, update)
    solve_turns(of, solution, min(1, of.tokens - 1), psum)
    share = of.heads // of.key_heads
    for h in range(of.key_heads):
        nisa.tensor_copy(
            dst=made.record[0:fresh, h : h + 1, TILE : TILE * (share + 1)],
            src=values[:, h * share : (h + 1) * share], engine=nisa.engine.scalar,
        )  # fmt: skip
    begin = split(min(of.batch, GROUP), START)[0]
    find_first(of, made, decays, update, work.old, begin, psum)
    far, drafted = (
        multiply(known_keys, new_queries, psum),
        multiply(new_keys, columns.key[:, :, fresh : of.known], psum),
    )
    solve_turns(of, solution, min(1, max(0, of.tokens - 2)), psum)
    fade_moves(of, made, decays, update)
    add_keys(of, tied, made, update, begin)
    score(of, tied, decays.ahead, far, solution.given)
    fill_system(of, tied, made, decays, drafted, solution.lower, fresh, of.known)
    turn_first(of, update, psum)
    begin_reads(of, tied, made, decays, work.reads)


def _run(work: Work) -> None:
    """The sequences of the first group, with the solution between them; outputs; the others; checkpoints."""
    of, tied, made, update, psum = work.of, work.tied, work.tokens, work.update, work.psum
    groups = split(of.batch, GROUP)
    outcomes, parts = make_outcomes(of, made, groups), split(groups[0][1], START)
    go_on(of, made, work.solution, work.reads, psum)
    for n in range(len(parts)):
        for b in range(parts[n][0], parts[n][1]):
            ahead = b == parts[n][0] and n + 1 < len(parts)
            if ahead:
                add_keys(of, tied, made, update, parts[n + 1])
                find_first(of, made, work.decays, update, work.old, parts[n + 1], psum)
            advance(work, b)
            if ahead:
                turn_first(of, update, psum)
    finish(of, made, work.solution, work.reads, psum)
    add_keys(of, tied, made, update, (groups[0][1], of.batch + of.checks))
    for outcome in outcomes:
        give_out(of, made, work.reads, work.old, outcome, psum)
    for n in range(len(groups)):
        turn_out(of, tied, outcomes[n], [update.moves] if n > 0 else [], psum)
        store_outcome(of, work.hbm, outcomes[n])
        if n > 0:
            for b in range(groups[n][0], groups[n][1]):
                advance(work, b)
    for c in range(of.batch, of.batch + of.checks):
        advance(work, c)


def advance(work: Work, x: int) -> None:
    """A state that holds its drafts and its first token, stored: a sequence's, or a checkpoint's.

    Between a product and what waits for it is room for a step on the way to outputs. Checkpoints are left to GpSimd,
    which has time.
    """
    of, hbm, new = work.of, work.hbm, sbuf(nl.float32, (TILE, work.of.heads, TILE))
    share, checkpoint = of.heads // of.key_heads, x >= of.batch
    for key in range(of.key_heads):
        for part in split(share, 4):
            first, last = key * share + part[0], key * share + part[1]
            bank = add_moves(of, work.update, x, first, last, work.psum)
            go_on(of, work.tokens, work.solution, work.reads, work.psum)
            fade_state(work.decays, new, work.old[x], x, first, last, bank)
            if not checkpoint:
                dst = _entry(of, hbm, (first, last), hbm.target[x])
                nisa.dma_copy(dst=dst, src=new[:, first:last], oob_mode=nisa.oob_mode.skip)
    if checkpoint:
        dst = _entry(of, hbm, (0, of.heads), hbm.target[x])
        nisa.dma_copy(dst=dst, src=new, oob_mode=nisa.oob_mode.skip, dge_mode=nisa.dge_mode.swdge)


def _indices(where: nl.ndarray, first: int, count: int, engine: nisa.engine) -> list:
    """Of [1, n] in SBUF so many as tiles of [1, 1]: an address is read from a tile of its own only."""
    tiles = []
    for n in range(count):
        tiles.append(sbuf(nl.int32, (1, 1)))
        nisa.tensor_copy(dst=tiles[n], src=where[:, first + n : first + n + 1], engine=engine)
    return tiles


def _rows_of(src: nl.ndarray, rows: int, first: int, own: int) -> nl.ndarray:
    """[B, M, heads, D] of HBM as [B * M, own, D], own heads from the first on."""
    every = src.shape[2] * TILE
    return src.ap(pattern=[[every, rows], [TILE, own], [1, TILE]], offset=first * TILE)


def load_gates(of: Sizes, hbm: Memory, made: Tokens, g: nl.ndarray, beta: nl.ndarray) -> None:
    """Gates and write strengths of new tokens."""
    share, every = of.heads // of.key_heads, g.shape[2]
    gates = g.ap(pattern=[[every, of.fresh], [share, of.key_heads], [1, share]], offset=hbm.head)
    nisa.dma_copy(dst=made.record[0 : of.fresh, :, of.width - share : of.width], src=gates)
    nisa.dma_copy(dst=made.gain[0 : of.fresh], src=beta.ap(pattern=[[every, of.fresh], [1, of.heads]], offset=hbm.head))


def load_records(of: Sizes, hbm: Memory, made: Tokens, records: nl.ndarray) -> None:
    """Those of drafts, by index."""
    lanes, drafts, key_heads, rows = hbm.pending.shape[0], of.drafts, hbm.pending.shape[2], records.shape[0]
    every = hbm.pending.reshape((lanes * drafts, key_heads * of.width))
    own = of.key_heads * of.width
    src = every.ap(
        pattern=[[key_heads * of.width, rows], [1, own]], offset=hbm.key * of.width, vector_offset=records
    )  # fmt: skip
    nisa.dma_copy(dst=made.record[of.fresh : of.fresh + rows], src=src)


def _entry(of: Sizes, hbm: Memory, part: tuple, index: nl.ndarray) -> nl.ndarray:
    """Heads [first, last) of this core's in the state that `index` names, [d, heads, v]."""
    return hbm.states.ap(
        pattern=[[TILE, TILE], [TILE * TILE, part[1] - part[0]], [1, TILE]],
        offset=(hbm.head + part[0]) * TILE * TILE, scalar_offset=index, indirect_dim=0,
    )  # fmt: skip


def load_state(of: Sizes, hbm: Memory, index: nl.ndarray) -> nl.ndarray:
    """fp32 [d, H, v]."""
    state = sbuf(nl.float32, (TILE, of.heads, TILE))
    for part in split(of.heads, hbm.piece):
        nisa.dma_copy(dst=state[:, part[0] : part[1]], src=_entry(of, hbm, part, index))
    return state


def store_outcome(of: Sizes, hbm: Memory, outcome: Outcome) -> None:
    """Outputs and records."""
    every, key_heads = hbm.o.shape[2], hbm.pending.shape[2]
    begin, end = outcome.first * of.tokens, outcome.last * of.tokens
    dst = hbm.o.ap(
        pattern=[[every * TILE, end - begin], [TILE, of.heads], [1, TILE]], offset=(begin * every + hbm.head) * TILE
    )  # fmt: skip
    nisa.dma_copy(dst=dst, src=outputs_of(of, outcome))
    if of.tokens == 1:
        return
    for b in range(outcome.first, outcome.last):
        dst = hbm.pending.ap(
            pattern=[[key_heads * of.width, of.tokens - 1], [of.width, of.key_heads], [1, of.width]],
            offset=hbm.key * of.width, scalar_offset=hbm.lanes[b], indirect_dim=0,
        )  # fmt: skip
        nisa.dma_copy(
            dst=dst, src=outcome.record[b * of.tokens + 1 : (b + 1) * of.tokens], oob_mode=nisa.oob_mode.skip,
            dge_mode=nisa.dge_mode.swdge if b % 2 == 0 else nisa.dge_mode.unknown,
        )  # fmt: skip
