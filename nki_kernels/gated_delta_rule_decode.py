"""Gated delta rule, a few tokens for each sequence of a batch: decoding, and checking draft tokens."""

from dataclasses import dataclass

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np

from .delta_rule_tiles import L2_EPS, TILE, Bank, make_banks, split

IDENTITY = np.eye(TILE, dtype=np.float32)
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

    where_from = nl.ndarray((1, batch), dtype=nl.int32, buffer=nl.sbuf)
    places = write.shape[1] // (batch * steps)
    where_to = nl.ndarray((1, batch * steps * places), dtype=nl.int32, buffer=nl.sbuf)
    nisa.dma_copy(dst=where_from, src=read)
    nisa.dma_copy(dst=where_to, src=write)
    eye = nl.ndarray((TILE, TILE), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=eye, src=nl.shared_constant(IDENTITY))
    ones = nl.ndarray((TILE, TILE), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=ones, value=1.0)

    psum = make_banks()
    size = min(STATES, TILE // (steps * own))
    for first in range(0, batch, size):
        last = min(first + size, batch)
        n = last - first
        states = nl.ndarray((TILE, n, own, TILE), dtype=nl.float32, buffer=nl.sbuf)
        for b in range(n):
            src = lanes.ap(
                pattern=[[TILE, TILE], [TILE * TILE, own], [1, TILE]], offset=core * own * TILE * TILE,
                scalar_offset=where_from[0:1, first + b : first + b + 1], indirect_dim=0,
            )  # fmt: skip
            nisa.dma_copy(dst=states[:, b : b + 1], src=src)
        # All sequences' states are in SBUF before the first is written.
        rows = Rows(
            first=first, last=last, steps=steps, places=places, keys=(core * own_keys, own_keys),
            values=(core * own, own),
        )  # fmt: skip
        columns = _columns(rows, q, k, v, g, beta, ones, psum)
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
class Columns(nl.NKIObject):
    """Vectors as columns, fp32 [D, n], n counting sequences, then tokens, then heads.

    Attributes:
        kq: [d, 2, n * HK], normalised. v, out: [v, n * H].
        decay, beta: [128, n * H], the same on every row: e^g and beta. match: [128, n * HK], q . k on every row.
    """

    kq: nl.ndarray
    v: nl.ndarray
    decay: nl.ndarray
    beta: nl.ndarray
    match: nl.ndarray
    out: nl.ndarray


def _sbuf(dtype: nl.dtype, shape: tuple) -> nl.ndarray:
    return nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf)


def _columns(
    rows: Rows,
    q: nl.ndarray,
    k: nl.ndarray,
    v: nl.ndarray,
    g: nl.ndarray,
    beta: nl.ndarray,
    ones: nl.ndarray,
    psum: Bank,
) -> Columns:
    """Load rows, normalise keys and queries while they are rows, turn everything into columns."""
    f32, first, last = nl.float32, rows.first, rows.last
    tokens = (last - first) * rows.steps
    wide, narrow = tokens * rows.values[1], tokens * rows.keys[1]
    key_end, value_end = rows.keys[0] + rows.keys[1], rows.values[0] + rows.values[1]

    pair, values = _sbuf(k.dtype, (narrow, 2, TILE)), _sbuf(v.dtype, (wide, TILE))
    nisa.dma_copy(dst=pair[:, 0:1], src=k[first:last, :, rows.keys[0] : key_end])
    nisa.dma_copy(dst=pair[:, 1:2], src=q[first:last, :, rows.keys[0] : key_end])
    nisa.dma_copy(dst=values, src=v[first:last, :, rows.values[0] : value_end])
    decay, strength = _sbuf(f32, (TILE, wide)), _sbuf(f32, (TILE, wide))
    heads = g.shape[2]
    pattern = [[0, TILE], [heads, tokens], [1, rows.values[1]]]
    nisa.dma_copy(dst=decay, src=g.ap(pattern=pattern, offset=first * rows.steps * heads + rows.values[0]))
    nisa.dma_copy(dst=strength, src=beta.ap(pattern=pattern, offset=first * rows.steps * heads + rows.values[0]))
    nisa.activation(dst=decay, op=nl.exp, data=decay)

    unit, square, total = _sbuf(f32, (narrow, 2, TILE)), _sbuf(f32, (narrow, TILE)), _sbuf(f32, (narrow, 2))
    kq, turned = _sbuf(f32, (TILE, 2, narrow)), psum.take()[:, 0 : 2 * narrow]
    for side in range(2):
        scale = float(TILE) if side == 1 else 1.0
        norm = total[:, side : side + 1]
        nisa.activation_reduce(
            dst=square, op=nl.square, data=pair[:, side : side + 1], reduce_op=nl.add, reduce_res=norm
        )
        nisa.activation(dst=norm, op=nl.rsqrt, data=norm, scale=scale, bias=scale * L2_EPS)
        nisa.tensor_scalar(dst=unit[:, side : side + 1], data=pair[:, side : side + 1], op0=nl.multiply, operand0=norm)
        nisa.nc_transpose(dst=turned[:, side * narrow : (side + 1) * narrow], data=unit[:, side : side + 1])
    nisa.tensor_copy(dst=kq, src=turned)
    turned_v, columns_v = psum.take().view(v.dtype)[:, 0:wide], _sbuf(f32, (TILE, wide))
    nisa.nc_transpose(dst=turned_v, data=values)
    nisa.tensor_copy(dst=columns_v, src=turned_v)

    both, match, summed = _sbuf(f32, (TILE, narrow)), _sbuf(f32, (TILE, narrow)), psum.take()[:, 0:narrow]
    nisa.tensor_tensor(dst=both, data1=kq[:, 0:1], data2=kq[:, 1:2], op=nl.multiply)
    # [d, m] x [d, n] -> [m, n]: the sum over d, on every row m
    nisa.nc_matmul(dst=summed, stationary=ones, moving=both, is_stationary_onezero=True, accumulate=False)
    nisa.tensor_copy(dst=match, src=summed)
    return Columns(kq=kq, v=columns_v, decay=decay, beta=strength, match=match, out=_sbuf(f32, (TILE, wide)))


def _run(
    rows: Rows,
    columns: Columns,
    states: nl.ndarray,
    eye: nl.ndarray,
    lanes: nl.ndarray,
    where_to: nl.ndarray,
    psum: Bank,
) -> None:
    """All tokens, one after the other, every sequence and head at once."""
    n, heads, key_heads, steps = rows.last - rows.first, rows.values[1], rows.keys[1], rows.steps
    share = heads // key_heads
    f32 = nl.float32
    for m in range(steps):
        # [d, v] x [d, (k, q)] -> [v, (k, q)]
        seen = psum.take()[:, 0 : 2 * n * heads]
        for b in range(n):
            for h in range(heads):
                at, of = b * heads + h, (b * steps + m) * key_heads + h // share
                nisa.nc_matmul(
                    dst=seen[:, 2 * at : 2 * at + 2], stationary=states[:, b : b + 1, h : h + 1],
                    moving=columns.kq[:, :, of : of + 1], accumulate=False,
                )  # fmt: skip
        decay, beta = _token(columns.decay, n, steps, m), _token(columns.beta, n, steps, m)
        halves = seen.reshape((TILE, n, heads, 2))
        delta, out = _sbuf(f32, (TILE, n, heads)), _token(columns.out, n, steps, m)
        nisa.tensor_tensor(dst=delta, data1=halves[:, :, :, 0:1], data2=decay, op=nl.multiply)
        nisa.tensor_tensor(dst=delta, data1=_token(columns.v, n, steps, m), data2=delta, op=nl.subtract)
        nisa.tensor_tensor(dst=delta, data1=delta, data2=beta, op=nl.multiply)

        # o = e^g q^T S + (q . k) delta
        part_q = _sbuf(f32, (TILE, n, heads))
        match = columns.match.ap(
            pattern=[
                [columns.match.shape[1], TILE], [steps * key_heads, n], [1, key_heads], [0, share]
            ], offset=m * key_heads,
        )  # fmt: skip
        nisa.tensor_tensor(dst=part_q, data1=halves[:, :, :, 1:2], data2=decay, op=nl.multiply)
        nisa.tensor_tensor(dst=out, data1=delta, data2=match, op=nl.multiply)
        nisa.tensor_tensor(dst=out, data1=out, data2=part_q, op=nl.add)

        kept, new = _sbuf(f32, (TILE, n, heads, TILE)), _sbuf(f32, (TILE, n, heads, TILE))
        for b in range(n):
            for h in range(heads):
                col = (b * steps + m) * heads + h
                nisa.activation(
                    dst=kept[:, b : b + 1, h : h + 1], op=nl.copy, data=states[:, b : b + 1, h : h + 1],
                    scale=columns.decay[:, col : col + 1],
                )  # fmt: skip
        for b in range(n):
            for part in split(heads, 4):
                spread = psum.take()
                for h in range(part[0], part[1]):
                    # [v', m] x [v', v] -> [m, v]: delta as a row, on every row m
                    column = delta.ap(pattern=[[n * heads, TILE], [0, TILE]], offset=b * heads + h)
                    dst, of = spread[:, (h - part[0]) * TILE : (h - part[0] + 1) * TILE], (b * steps + m) * key_heads
                    nisa.nc_matmul(dst=dst, stationary=column, moving=eye, is_moving_onezero=True, accumulate=False)
                    nisa.scalar_tensor_tensor(
                        dst=new[:, b : b + 1, h : h + 1], data=dst, op0=nl.multiply,
                        operand0=columns.kq[:, 0:1, of + h // share : of + h // share + 1].reshape((TILE, 1)),
                        op1=nl.add, operand1=kept[:, b : b + 1, h : h + 1],
                    )  # fmt: skip
            for place in range(rows.places):
                to = ((rows.first + b) * steps + m) * rows.places + place
                dst = lanes.ap(
                    pattern=[[TILE, TILE], [TILE * TILE, heads], [1, TILE]], offset=rows.values[0] * TILE * TILE,
                    scalar_offset=where_to[0:1, to : to + 1], indirect_dim=0,
                )  # fmt: skip
                nisa.dma_copy(dst=dst, src=new[:, b : b + 1], oob_mode=nisa.oob_mode.skip)
        states = new


def _token(columns: nl.ndarray, n: int, steps: int, m: int) -> nl.ndarray:
    """The columns of token m of every sequence: [128, n, 1, heads]."""
    heads = columns.shape[1] // (n * steps)
    return columns.reshape((TILE, n, steps, heads))[:, :, m : m + 1, :]


def _store(rows: Rows, columns: nl.ndarray, o: nl.ndarray, psum: Bank) -> None:
    """Columns back to rows [sequence, token, head, v]."""
    wide = columns.shape[1]
    turned = psum.take()[0:wide, 0:TILE]
    out = _sbuf(nl.float32, (wide, TILE))
    nisa.nc_transpose(dst=turned, data=columns)
    nisa.tensor_copy(dst=out, src=turned)
    nisa.dma_copy(dst=o[rows.first : rows.last, :, rows.values[0] : rows.values[0] + rows.values[1]], src=out)
