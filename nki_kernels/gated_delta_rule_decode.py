"""Gated delta rule, a few tokens for each sequence of a batch: decoding, and checking draft tokens."""

from dataclasses import dataclass

import nki
import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import (
    L2_EPS,
    TILE,
    Bank,
    identity,
    index_tiles,
    make_banks,
    sbuf,
    split,
    square_sums,
    to_power,
    turn_into,
)

STATES = 16
"""Sequences whose states are in SBUF at once: all are read before any is written."""


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
        HK, H: key and value heads, H a multiple of HK, M * H at most 128; with two cores each takes half of both
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
        All arithmetic is float32. A state is read once a token, for the key and the query together. Vectors of heads
        and sequences are columns: what is not a product with a state is one instruction for the whole batch.

    Pseudocode:
        q, k = q / sqrt(|q|^2 + eps) / sqrt(D), k / sqrt(|k|^2 + eps)
        for each token in turn:
            delta = beta (v - e^g k^T S)
            o = e^g q^T S + (q . k) delta
            S = e^g S + k delta^T
    """
    batch, steps, key_heads, size = k.shape
    heads = v.shape[2]
    cores = nl.num_programs()
    assert size == TILE, f"head size is {size}, must be {TILE}"
    assert heads % key_heads == 0, f"{heads} value heads do not divide among {key_heads} key heads"
    assert key_heads % cores == 0, f"{key_heads} key heads do not divide among {cores} cores"
    core = nl.program_id(0) if cores > 1 else 0
    own, own_keys = heads // cores, key_heads // cores
    assert steps * own <= TILE, f"{steps} tokens of {own} heads, at most {TILE} together"
    o = nl.ndarray((batch, steps, heads, TILE), dtype=nl.float32, buffer=nl.shared_hbm)

    places = write.shape[1] // (batch * steps)
    where_from = index_tiles(read, batch, nisa.engine.vector)
    where_to = index_tiles(write, batch * steps * places, nisa.engine.gpsimd)
    eye = identity(nl.float32)
    turns = eye if v.dtype == nl.float32 else identity(v.dtype)
    ones = sbuf(nl.float32, (TILE, TILE))
    nisa.memset(dst=ones, value=1.0, engine=nisa.engine.vector)

    psum = make_banks()
    group = min(STATES, TILE // (steps * own))
    for first in range(0, batch, group):
        last = min(first + group, batch)
        n = last - first
        states = sbuf(nl.float32, (TILE, n, own, TILE))
        for b in range(n):
            src = lanes.ap(
                pattern=[[TILE, TILE], [TILE * TILE, own], [1, TILE]], offset=core * own * TILE * TILE,
                scalar_offset=where_from[first + b], indirect_dim=0,
            )  # fmt: skip
            nisa.dma_copy(dst=states[:, b : b + 1], src=src)
        # All sequences' states are in SBUF before the first is written.
        rows = Rows(
            first=first, last=last, steps=steps, places=places, keys=(core * own_keys, own_keys),
            values=(core * own, own),
        )  # fmt: skip
        columns = _make_columns(rows, q, k, v, g, beta, Tables(eye=eye, turns=turns, ones=ones), psum)
        _run(rows, columns, states, eye, lanes, where_to, psum)
        _store(rows, columns.out, o, psum)
    return o, lanes


@dataclass
class Rows(nl.NKIObject):
    """Sequences [first, last), tokens of each, lanes a token, and (first, count) of this core's key and value heads."""

    first: int
    last: int
    steps: int
    places: int
    keys: tuple
    values: tuple


@dataclass
class Tables(nl.NKIObject):
    """[128, 128]: the identity in fp32, in v's type, and ones in fp32."""

    eye: nl.ndarray
    turns: nl.ndarray
    ones: nl.ndarray


@dataclass
class Columns(nl.NKIObject):
    """Vectors as columns, fp32; T counts sequences, then tokens of each.

    Attributes:
        kq: [d, 2, HK, T], normalised. v, out: [v, H, T].
        decay, beta: [128, H, T], the same on every row: e^g and beta. match: [128, HK, T], q . k on every row.
    """

    kq: nl.ndarray
    v: nl.ndarray
    decay: nl.ndarray
    beta: nl.ndarray
    match: nl.ndarray
    out: nl.ndarray


def _rows_of(src: nl.ndarray, rows: Rows, heads: tuple, size: int) -> nl.ndarray:
    """[B, M, H, size] of HBM, or [B, M, H] with size 1, as [T, heads, size]; heads are (first, count)."""
    every = src.shape[2] * size
    return src.ap(
        pattern=[[every, (rows.last - rows.first) * rows.steps], [size, heads[1]], [1, size]],
        offset=rows.first * rows.steps * every + heads[0] * size,
    )  # fmt: skip


def _make_columns(
    rows: Rows,
    q: nl.ndarray,
    k: nl.ndarray,
    v: nl.ndarray,
    g: nl.ndarray,
    beta: nl.ndarray,
    tables: Tables,
    psum: Bank,
) -> Columns:
    """Load rows, normalise keys and queries while they are rows, turn everything into columns."""
    f32, tokens = nl.float32, (rows.last - rows.first) * rows.steps
    heads, key_heads = rows.values[1], rows.keys[1]
    pair, values = sbuf(k.dtype, (tokens, 2, key_heads, TILE)), sbuf(v.dtype, (tokens, heads, TILE))
    gates = sbuf(f32, (tokens, 2, heads))
    nisa.dma_copy(dst=pair[:, 0:1], src=_rows_of(k, rows, rows.keys, TILE))
    nisa.dma_copy(dst=pair[:, 1:2], src=_rows_of(q, rows, rows.keys, TILE))
    nisa.dma_copy(dst=gates[:, 0:1], src=_rows_of(g, rows, rows.values, 1))
    nisa.dma_copy(dst=gates[:, 1:2], src=_rows_of(beta, rows, rows.values, 1))
    nisa.dma_copy(dst=values, src=_rows_of(v, rows, rows.values, TILE))

    # Each token's gates go to its own columns, and from there to every row: [t, p] x [t, (g and beta, h, t')] -> [p, .]
    apart, wide = sbuf(f32, (tokens, 2, heads, tokens)), heads * tokens
    nisa.tensor_tensor(
        dst=apart, data1=gates.ap(pattern=[[2 * heads, tokens], [1, 2 * heads], [0, tokens]]),
        data2=tables.eye.ap(pattern=[[TILE, tokens], [0, 2 * heads], [1, tokens]]), op=nl.multiply,
        engine=nisa.engine.vector,
    )  # fmt: skip
    spread = psum.take()[:, 0 : 2 * wide]
    nisa.nc_matmul(
        dst=spread, stationary=tables.ones[0:tokens], moving=apart, is_stationary_onezero=True, accumulate=False
    )
    decay, strength = sbuf(f32, (TILE, heads, tokens)), sbuf(f32, (TILE, heads, tokens))
    nisa.activation(dst=decay, op=nl.exp, data=spread[:, 0:wide])
    nisa.tensor_copy(dst=strength, src=spread[:, wide : 2 * wide], engine=nisa.engine.vector)

    unit, norm = sbuf(f32, (tokens, 2, key_heads, TILE)), sbuf(f32, (tokens, 2, key_heads))
    square_sums(norm.reshape((tokens, 2 * key_heads)), pair.reshape((tokens, 2 * key_heads, TILE)))
    nisa.tensor_scalar(
        dst=norm[:, 1:2], data=norm[:, 1:2], op0=nl.multiply, operand0=float(TILE), engine=nisa.engine.vector
    )
    to_power(norm[:, 0:1], norm[:, 0:1], L2_EPS, -0.5)
    to_power(norm[:, 1:2], norm[:, 1:2], TILE * L2_EPS, -0.5)
    nisa.tensor_tensor(
        dst=unit, data1=pair, data2=norm.ap(pattern=[[2 * key_heads, tokens], [1, 2 * key_heads], [0, TILE]]),
        op=nl.multiply, engine=nisa.engine.vector,
    )  # fmt: skip
    kq, columns_v = sbuf(f32, (TILE, 2, key_heads, tokens)), sbuf(f32, (TILE, heads, tokens))
    _turn(kq.reshape((TILE, 2 * key_heads, tokens)), unit.reshape((tokens, 2 * key_heads, TILE)), tables.eye, psum)
    _turn(columns_v, values, tables.turns, psum)

    both, match = sbuf(f32, (TILE, key_heads, tokens)), sbuf(f32, (TILE, key_heads, tokens))
    summed = psum.take()[:, 0 : key_heads * tokens]
    nisa.tensor_tensor(dst=both, data1=kq[:, 0:1], data2=kq[:, 1:2], op=nl.multiply, engine=nisa.engine.vector)
    # [d, m] x [d, n] -> [m, n]: the sum over d, on every row m
    nisa.nc_matmul(dst=summed, stationary=tables.ones, moving=both, is_stationary_onezero=True, accumulate=False)
    nisa.tensor_copy(dst=match, src=summed, engine=nisa.engine.vector)
    return Columns(kq=kq, v=columns_v, decay=decay, beta=strength, match=match, out=sbuf(f32, (TILE, heads, tokens)))


def _turn(dst: nl.ndarray, src: nl.ndarray, eye: nl.ndarray, psum: Bank) -> None:
    """[T, n, 128] to [128, n, T]."""
    tokens, count = src.shape[0], src.shape[1]
    turned = psum.take()[:, 0 : count * tokens]
    for n in range(count):
        data = src[:, n : n + 1].reshape((tokens, TILE))
        turn_into(turned[:, n * tokens : (n + 1) * tokens], data, eye)
    nisa.tensor_copy(dst=dst, src=turned, engine=nisa.engine.vector)


def _run(
    rows: Rows,
    columns: Columns,
    states: nl.ndarray,
    eye: nl.ndarray,
    lanes: nl.ndarray,
    where_to: list,
    psum: Bank,
) -> None:
    """All tokens, one after the other, every sequence and head at once."""
    n, heads, key_heads, steps = rows.last - rows.first, rows.values[1], rows.keys[1], rows.steps
    share, f32, keys = heads // key_heads, nl.float32, columns.kq[:, 0:1].reshape((TILE, key_heads, n * steps))
    for m in range(steps):
        # [d, v] x [d, (k, q)] -> [v, (k, q)]
        seen = psum.take()[:, 0 : 2 * n * heads]
        for b in range(n):
            for h in range(heads):
                at, t, of = h * n + b, b * steps + m, h // share
                nisa.nc_matmul(
                    dst=seen[:, 2 * at : 2 * at + 2], stationary=states[:, b : b + 1, h : h + 1],
                    moving=columns.kq[:, :, of : of + 1, t : t + 1], accumulate=False,
                )  # fmt: skip
        decay, beta = _token(columns.decay, n, steps, m), _token(columns.beta, n, steps, m)
        halves = seen.reshape((TILE, heads, n, 2))
        delta, out = sbuf(f32, (TILE, heads, n)), _token(columns.out, n, steps, m)
        nisa.tensor_tensor(dst=delta, data1=halves[:, :, :, 0:1], data2=decay, op=nl.multiply)
        nisa.tensor_tensor(dst=delta, data1=_token(columns.v, n, steps, m), data2=delta, op=nl.subtract)
        nisa.tensor_tensor(dst=delta, data1=delta, data2=beta, op=nl.multiply)

        # o = e^g q^T S + (q . k) delta
        part_q, tokens = sbuf(f32, (TILE, heads, n)), n * steps
        match = columns.match.ap(
            pattern=[[key_heads * tokens, TILE], [tokens, key_heads], [0, share], [steps, n]], offset=m
        )
        nisa.tensor_tensor(dst=part_q, data1=halves[:, :, :, 1:2], data2=decay, op=nl.multiply)
        nisa.tensor_tensor(dst=out, data1=delta, data2=match, op=nl.multiply)
        nisa.tensor_tensor(dst=out, data1=out, data2=part_q, op=nl.add)

        kept, new = sbuf(f32, (TILE, n, heads, TILE)), sbuf(f32, (TILE, n, heads, TILE))
        for b in range(n):
            for h in range(heads):
                col = b * steps + m
                nisa.activation(
                    dst=kept[:, b : b + 1, h : h + 1], op=nl.copy, data=states[:, b : b + 1, h : h + 1],
                    scale=_column(columns.decay, h, col),
                )  # fmt: skip
        for b in range(n):
            for part in split(heads, 4):
                spread = psum.take()
                for h in range(part[0], part[1]):
                    # [v', m] x [v', v] -> [m, v]: delta as a row, on every row m
                    column = delta.ap(pattern=[[n * heads, TILE], [0, TILE]], offset=h * n + b)
                    dst = spread[:, (h - part[0]) * TILE : (h - part[0] + 1) * TILE]
                    nisa.nc_matmul(dst=dst, stationary=column, moving=eye, is_moving_onezero=True, accumulate=False)
                    nisa.scalar_tensor_tensor(
                        dst=new[:, b : b + 1, h : h + 1], data=dst, op0=nl.multiply,
                        operand0=_column(keys, h // share, b * steps + m), op1=nl.add,
                        operand1=kept[:, b : b + 1, h : h + 1],
                    )  # fmt: skip
            for place in range(rows.places):
                to = ((rows.first + b) * steps + m) * rows.places + place
                dst = lanes.ap(
                    pattern=[[TILE, TILE], [TILE * TILE, heads], [1, TILE]], offset=rows.values[0] * TILE * TILE,
                    scalar_offset=where_to[to], indirect_dim=0,
                )  # fmt: skip
                nisa.dma_copy(dst=dst, src=new[:, b : b + 1].reshape((TILE, heads, TILE)), oob_mode=nisa.oob_mode.skip)
        states = new


def _column(columns: nl.ndarray, head: int, token: int) -> nl.ndarray:
    """One of [128, heads, T] as [128, 1]."""
    return columns[:, head : head + 1, token : token + 1].reshape((TILE, 1))


def _token(columns: nl.ndarray, n: int, steps: int, m: int) -> nl.ndarray:
    """The columns of token m of every sequence: [128, heads, n, 1]."""
    return columns.reshape((TILE, columns.shape[1], n, steps))[:, :, :, m : m + 1]


def _store(rows: Rows, columns: nl.ndarray, o: nl.ndarray, psum: Bank) -> None:
    """Columns [v, H, T] back to rows [sequence, token, head, v]."""
    heads, tokens = columns.shape[1], columns.shape[2]
    out = sbuf(nl.float32, (tokens, heads, TILE))
    for part in split(heads, 4):
        turned = psum.take()[0:tokens, 0 : (part[1] - part[0]) * TILE]
        for h in range(part[0], part[1]):
            at = (h - part[0]) * TILE
            nisa.nc_transpose(dst=turned[:, at : at + TILE], data=columns[:, h : h + 1].reshape((TILE, tokens)))
        nisa.tensor_copy(dst=out[:, part[0] : part[1]], src=turned, engine=nisa.engine.vector)
    nisa.dma_copy(dst=_rows_of(o, rows, rows.values, TILE), src=out)
