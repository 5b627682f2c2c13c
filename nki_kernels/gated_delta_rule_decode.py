"""Gated delta rule, a few tokens for each sequence of a batch: decoding, and checking draft tokens."""

from dataclasses import dataclass

import nki
import nki.isa as nisa
import nki.language as nl

from .delta_rule_step import (
    SCALE,
    Columns,
    Inputs,
    Tables,
    Update,
    add_erased,
    erase,
    fade_state,
    key_columns,
    make_columns,
    make_inputs,
    make_update,
    query_columns,
    read_state,
    scale_rows,
    turn,
)
from .delta_rule_tiles import BANK_COLUMNS, TILE, Bank, index_tiles, keep_diagonal, make_banks, sbuf, split

HELD = 96
"""Heads' states in SBUF at once, old and new: 16 sequences of 6 heads."""


@nki.jit
def gated_delta_rule_decode(
    q: nl.ndarray,
    k: nl.ndarray,
    v: nl.ndarray,
    g: nl.ndarray,
    beta: nl.ndarray,
    lanes: nl.ndarray,
    read: nl.ndarray,
    write: nl.ndarray,
) -> tuple:
    """M tokens of the gated delta rule for every sequence of a batch, states in place by lane index.

    With M = 1 and `write` equal to `read` this is a decode step. With drafts, M is one more than their number and the
    state after each token goes to its own lane: rolling back is to read the lane of the last token accepted.

    Dimensions:
        B: sequences
        M: tokens of each
        HK, H: key and value heads, H a multiple of HK; with two cores each takes half of both
        D: key and value head size, 128

    Args:
        q (nl.ndarray): [B, M, HK, D], queries, not normalised; float32 or bfloat16
        k (nl.ndarray): [B, M, HK, D], keys, not normalised, of q's type
        v (nl.ndarray): [B, M, H, D], values, of q's type
        g (nl.ndarray): [B, M, H], float32, log of the decay
        beta (nl.ndarray): [B, M, H], float32, write strength
        lanes (nl.ndarray): [lanes, H, D, D], float32, states, key dimension first; written in place
        read (nl.ndarray): [1, B], int32, the lane that holds each sequence's state
        write (nl.ndarray): [1, B * M * W], int32, the W lanes for the state after each token: one, or a second one for
            a checkpoint; past the last lane: not kept. No lane is named twice, and no sequence writes a lane that
            another reads, but for a scratch lane whose content means nothing

    Returns:
        o (nl.ndarray): [B, M, H, D], float32
        lanes (nl.ndarray): the argument

    Notes:
        All arithmetic is float32. Between the arrival of a state and its departure lie one product and one instruction
        that adds it from PSUM: all else that a token needs is made of its q, k, v, g and beta while the state is on its
        way. For that k k^T is multiplied with the state, in place of k and then k again, and the output is one vector
        times the old state. The state itself only passes VectorE: it is not a product that keeps it.

        Transfers take two microseconds however small, so they are spread over what issues them: GpSimd, and the one
        resource that the others share.

    Pseudocode:
        q, k = q / sqrt(|q|^2 + eps), k / sqrt(|k|^2 + eps)
        for each token in turn:
            o = (S^T (e^g (q - beta (q . k) k)) + beta (q . k) v) / sqrt(D)
            S = e^g S + beta k v^T - beta e^g (k k^T) S
    """
    batch, steps, key_heads, size = k.shape
    heads = v.shape[2]
    cores = nl.num_programs()
    assert size == TILE, f"head size is {size}, must be {TILE}"
    assert heads % key_heads == 0, f"{heads} value heads do not divide among {key_heads} key heads"
    assert key_heads % cores == 0, f"{key_heads} key heads do not divide among {cores} cores"
    core = nl.program_id(0) if cores > 1 else 0
    own, own_keys = heads // cores, key_heads // cores
    group = min(max(1, HELD // own), BANK_COLUMNS // (steps * max(own, 5 * own_keys)))
    assert group > 0, f"{steps} tokens of {own} value and {own_keys} key heads do not fit a bank of PSUM"
    o = nl.ndarray((batch, steps, heads, TILE), dtype=nl.float32, buffer=nl.shared_hbm)

    vector, pool = nisa.engine.vector, nisa.dge_mode.swdge
    tables = Tables(eye=sbuf(k.dtype, (TILE, min(batch, group) * steps)), ones=sbuf(nl.float32, (TILE, TILE)))
    warm = sbuf(nl.float32, (TILE, 1))
    nisa.memset(dst=tables.eye, value=1.0, engine=vector)
    nisa.memset(dst=tables.ones, value=1.0, engine=vector)
    nisa.activation(dst=warm, op=nl.exp, data=tables.ones[:, 0:1])  # its table is loaded while the inputs come
    where_from = index_tiles(read, batch, vector)
    results = Results(o=o, stored=True, lanes=lanes, where=[], places=write.shape[1] // (batch * steps))
    psum = make_banks()
    for first in range(0, batch, group):
        n = min(group, batch - first)
        rows = Rows(
            first=first, n=n, steps=steps, keys=(core * own_keys, own_keys), values=(core * own, own),
            piece=min(4, (own + 2) // 3 if n == 1 else (own + 1) // 2),
        )  # fmt: skip
        inputs = make_inputs(n * steps, own_keys, own, k.dtype)
        nisa.dma_copy(dst=inputs.k, src=_rows_of(k, rows, rows.keys), dge_mode=pool)
        if first == 0:
            keep_diagonal(tables.eye)
        nisa.dma_copy(dst=inputs.q, src=_rows_of(q, rows, rows.keys))
        nisa.dma_copy(dst=inputs.v, src=_rows_of(v, rows, rows.values), dge_mode=pool)
        nisa.dma_copy(dst=inputs.g, src=_on_every_row(g, rows))
        nisa.dma_copy(dst=inputs.beta, src=_on_every_row(beta, rows), dge_mode=pool)
        # All are asked for before the first is written: who does not know that lanes differ lets a read await a write.
        states = []
        for b in range(n):
            states.append(load_state(rows, lanes, where_from[first + b]))
            if first + b == 0:
                results.where = index_tiles(write, write.shape[1], nisa.engine.gpsimd, pool)
        columns = make_columns(n * steps, own_keys, own)
        nisa.activation(dst=columns.decay, op=nl.exp, data=inputs.g)
        run_tokens(rows, inputs, columns, states, tables, results, psum)
    return o, lanes


@dataclass
class Rows(nl.NKIObject):
    """n sequences from `first` on, tokens of each, and (first, count) of this core's key and value heads.

    Attributes:
        piece: heads of a transfer of a state, at most: the first are at work while the last are on their way.
    """

    first: int
    n: int
    steps: int
    keys: tuple
    values: tuple
    piece: int


@dataclass
class Results(nl.NKIObject):
    """Output; lanes in HBM, and their indices, [1, 1] each: `places` of every token.

    Attributes:
        stored: the output is HBM's; else it is fp32 [v, T, H] of SBUF.
    """

    o: nl.ndarray
    stored: bool
    lanes: nl.ndarray
    where: list
    places: int


def _rows_of(src: nl.ndarray, rows: Rows, heads: tuple) -> nl.ndarray:
    """[B, M, H, D] of HBM as [T, heads, D]; heads are (first, count)."""
    every = src.shape[2] * TILE
    return src.ap(
        pattern=[[every, rows.n * rows.steps], [TILE, heads[1]], [1, TILE]],
        offset=rows.first * rows.steps * every + heads[0] * TILE,
    )  # fmt: skip


def _on_every_row(src: nl.ndarray, rows: Rows) -> nl.ndarray:
    """[B, M, H] of HBM as [128, T, heads], every row the same."""
    every = src.shape[2]
    return src.ap(
        pattern=[[0, TILE], [every, rows.n * rows.steps], [1, rows.values[1]]],
        offset=rows.first * rows.steps * every + rows.values[0],
    )  # fmt: skip


def _lane(lanes: nl.ndarray, rows: Rows, part: tuple, index: nl.ndarray) -> nl.ndarray:
    """Heads [first, last) of this core's in the lane that `index` names, [d, heads, v]."""
    return lanes.ap(
        pattern=[[TILE, TILE], [TILE * TILE, part[1] - part[0]], [1, TILE]],
        offset=(rows.values[0] + part[0]) * TILE * TILE, scalar_offset=index, indirect_dim=0,
    )  # fmt: skip


def load_state(rows: Rows, lanes: nl.ndarray, index: nl.ndarray) -> nl.ndarray:
    """fp32 [d, H, v]."""
    state = sbuf(nl.float32, (TILE, rows.values[1], TILE))
    for part in split(rows.values[1], rows.piece):
        nisa.dma_copy(dst=state[:, part[0] : part[1]], src=_lane(lanes, rows, part, index))
    return state


def run_tokens(
    rows: Rows, inputs: Inputs, columns: Columns, states: list, tables: Tables, results: Results, psum: Bank
) -> None:
    """The first token of every sequence, then the second; what the next needs is made before the one at hand is run.

    Of the columns the decays are there.
    """
    count, key_heads, heads = rows.n * rows.steps, rows.keys[1], rows.values[1]
    following, bank = make_update(key_heads, heads), psum.take()
    key_columns(columns, inputs, tables, bank)
    values = turn(psum.take()[:, 0 : count * heads], inputs.v, tables)
    nisa.tensor_scalar(dst=columns.values, data=values, op0=nl.multiply, operand0=SCALE, engine=nisa.engine.scalar)
    scale_rows(following.outer, inputs.k, columns.key, 0, tables, psum)
    query_columns(columns, inputs, tables, bank)
    scale_rows(following.new, inputs.v, columns.write, 0, tables, psum)
    for at in range(count):
        b, update = at % rows.n, following
        if at + 1 < count:
            following, token = make_update(key_heads, heads), _token(rows, at + 1)
            scale_rows(following.outer, inputs.k, columns.key, token, tables, psum)
            scale_rows(following.new, inputs.v, columns.write, token, tables, psum)
        _step(rows, columns, _token(rows, at), states[b], update, results, psum)
        states[b] = update.new


def _token(rows: Rows, at: int) -> int:
    """Which token has the turn `at`."""
    return at % rows.n * rows.steps + at // rows.n


def _step(
    rows: Rows, columns: Columns, token: int, state: nl.ndarray, update: Update, results: Results, psum: Bank
) -> None:
    """One token of one sequence: its output and the new state, both stored.

    By parts of the state, as they come. A part is finished behind the start of the next one: a product takes its time.
    """
    heads, parts, vector = rows.values[1], split(rows.values[1], rows.piece), nisa.engine.vector
    own, row, out = sbuf(nl.float32, (TILE, heads)), sbuf(nl.float32, (heads, TILE)), None
    last, erased, done = len(parts) - 1, [], 0
    for n in range(len(parts) + 1):
        if n == max(last - 1, 0):
            out = psum.take()[:, 0:heads]
        if n <= last:
            erased.append(psum.take())
            if n >= last - 1:
                until = heads if n == last else parts[n][0]
                read_state(out, columns, token, state, (done, until))
                done = until
            erase(erased[n], update, state, parts[n])
            fade_state(update, columns, token, state, parts[n])
        if n == 0:
            nisa.tensor_tensor(
                dst=own, data1=columns.values[:, token : token + 1], data2=columns.match[:, token : token + 1],
                op=nl.multiply, engine=vector,
            )  # fmt: skip
        if n == last:
            given = own if results.stored else results.o[:, token : token + 1]
            nisa.scalar_tensor_tensor(dst=given, data=out, op0=nl.multiply, operand0=SCALE, op1=nl.add, operand1=own)
        if n == last and results.stored:
            turned = psum.take()[0:heads, 0:TILE]
            nisa.nc_transpose(dst=turned, data=own)
            nisa.tensor_copy(dst=row, src=turned, engine=nisa.engine.scalar)
        if n > last and results.stored:
            at = (rows.first * rows.steps + token) * results.o.shape[2] + rows.values[0]
            dst = results.o.ap(pattern=[[TILE, heads], [1, TILE]], offset=at * TILE)
            nisa.dma_copy(dst=dst, src=row, dge_mode=nisa.dge_mode.swdge)
        if n > 0:
            add_erased(update, columns, token, erased[n - 1], parts[n - 1])
            _store_state(update, rows, token, 0, parts[n - 1], results)
    for place in range(1, results.places):
        _store_state(update, rows, token, place, (0, heads), results)


def _store_state(update: Update, rows: Rows, token: int, place: int, part: tuple, results: Results) -> None:
    """Heads [first, last) to one of the token's lanes; checkpoints are left to GpSimd, which has time."""
    index = results.where[(rows.first * rows.steps + token) * results.places + place]
    nisa.dma_copy(
        dst=_lane(results.lanes, rows, part, index), src=update.new[:, part[0] : part[1]],
        oob_mode=nisa.oob_mode.skip, dge_mode=nisa.dge_mode.swdge if place > 0 else nisa.dge_mode.unknown,
    )  # fmt: skip
