"""Many tokens a sequence of a Gated DeltaNet block: convolution, gates, chunked delta rule and gated norm, in one call.

The mathematics are those of `chunk_cpu`, but for one thing. With L = tril(k k^T o e^(G_i - G_j), -1), the
corrected values V' = (I + diag(beta) L)^-1 diag(beta) (v - e^G (k S)) are found by forward substitution: the inverse
is never formed. A thread takes heads through all their chunks, with what they need in its own cache.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numba import prange

from ...config import BLOCK_SIZE
from ..numba.product import COLUMNS, FULL, LOWER, PADDING, ROWS, below, product, transpose, whole
from ..numba.scalar import Array, array, compiled, exp, f32, i64, log_decay, one, sigmoid, zero
from ..numba.states import Entries, StateRows
from ..numba.vectors import (
    activate_all,
    add_product,
    add_scaled,
    convolve_four,
    copy,
    dot,
    fill,
    gated_norm_row,
    l2_normalise,
    multiply,
    prefetch,
    scale,
)
from ..numba.weights import DeltaNetWeights
from .chunk_cpu import MIN_LOG_DECAY

LOWEST = f32(MIN_LOG_DECAY)
SIZE = i64(BLOCK_SIZE)

PREFETCH_DISTANCE = 4
"""Tokens that inputs are asked for ahead of their use."""

PAIR_COST = 0.45
"""Time for a key head's keys and queries in a chunk, of that for one value head: 67 of 148 us, measured on one core."""


class Gates(NamedTuple):
    """Of the tokens of a chunk of one head, each [SIZE]; G is the sum of g so far and C the last token.

    Attributes:
        total: G. beta: beta. growth: e^G. fade: e^(G_C - G). pull: -beta e^G.
    """

    total: Array
    beta: Array
    growth: Array
    fade: Array
    pull: Array


def delta_net_prefill(
    projected: torch.Tensor, weights: DeltaNetWeights, bank: Entries, rows: StateRows, lead: int
) -> torch.Tensor:
    """All between the projections of a block, by chunks of BLOCK_SIZE tokens on absolute positions.

    Args:
        projected: [batch, tokens, channels + value_heads * dv + 2 * value_heads] fp32: queries, keys, values, gates,
            b, a.
        bank: the rows' lanes are changed to what follows each row's last token, and checkpoints go to their entries.
        lead: tokens of the first chunk that earlier calls have run.
    Returns:
        [batch, tokens, value_heads * dv], zero on padding.
    """
    batch, tokens = projected.shape[:2]
    value_heads, dv = bank.states.shape[1], bank.states.shape[3]
    out, inputs = torch.empty(batch, tokens, value_heads * dv), array(projected)
    small = weights.taps, weights.rate, weights.dt_bias, weights.norm_weight, weights.eps
    group = _heads_together(batch, weights.key_heads, value_heads // weights.key_heads, torch.get_num_threads())
    _run(inputs, small, weights.key_heads, bank, rows, lead, group, array(out))
    _keep_windows(inputs, bank.windows, rows)
    return out


def _heads_together(batch: int, key_heads: int, share: int, threads: int) -> int:
    """Value heads of one task: all of a key head, or one where that keeps more threads busy.

    Value heads apart each work out their keys and queries for themselves.
    """

    def rounds(group: int) -> float:
        return -(-batch * key_heads * share // group // threads) * (PAIR_COST + group)

    return share if rounds(share) <= rounds(1) else 1


@compiled(parallel=True)
def _run(
    projected: Array,
    small: tuple[Array, Array, Array, Array, float],
    key_heads: int,
    bank: Entries,
    rows: StateRows,
    lead: int,
    group: int,
    out: Array,
) -> None:
    """A task takes `group` value heads of one key head of a row through all chunks.

    Args:
        small: taps [K, channels], rate and dt_bias [value_heads], the norm's weight [dv] and its epsilon.
    """
    taps, rate, dt_bias, norm_weight, eps = small
    value_heads, dk, dv = bank.states.shape[1], bank.states.shape[2], bank.states.shape[3]
    tasks, share = value_heads // group, value_heads // key_heads
    tokens = projected.shape[1]
    for task in prange(projected.shape[0] * tasks):
        row, begin = task // tasks, task % tasks * group
        head, end, lane, source = begin // share, rows.ends[row], rows.lanes[row], rows.sources[row]
        x = projected[row]
        window = np.zeros_like(bank.windows[0]) if rows.fresh[row] else bank.windows[source]

        pairs = np.zeros((2 * SIZE, dk + PADDING), np.float32)  # keys, then queries, of unit length
        keys_t = np.empty((dk, SIZE + PADDING), np.float32)
        products = np.empty((2 * SIZE, SIZE + PADDING), np.float32)
        reads = np.empty((SIZE, SIZE + PADDING), np.float32)
        system = np.empty((SIZE, SIZE + PADDING), np.float32)
        values, read = np.empty((SIZE, dv + PADDING), np.float32), np.empty((SIZE, dv + PADDING), np.float32)
        states = np.empty((group, dk, dv + PADDING), np.float32)
        found = np.empty((5, SIZE), np.float32)
        gates = Gates(found[0], found[1], found[2], found[3], found[4])
        ones = np.full(max(SIZE, dk), one, np.float32)
        if not rows.fresh[row]:
            for s in range(group):
                for i in range(dk):
                    copy(bank.states[source, begin + s, i], states[s, i, :dv])

        for n in range((lead + end + SIZE - 1) // SIZE):
            before = n * SIZE - lead  # tokens of the call before this chunk, less than 0 if the chunk began earlier
            low, high = max(0, -before), min(SIZE, end - before)
            _unit_pairs(x, before, low, high, head, key_heads, window, taps, pairs)
            _transpose(pairs[:SIZE], keys_t)
            _pair_products(pairs, keys_t, ones, products)
            empty = n == 0 and rows.fresh[row]
            for s in range(group):
                value = begin + s
                _values(x, before, low, high, value, key_heads * dk, window, taps, rate, dt_bias, values, gates)
                _weigh(products, gates, system, reads)
                _chunk(pairs, system, reads, gates, ones, empty, values, read, states[s])
                first = value * dv
                z = taps.shape[1] + first
                for t in range(low, high):
                    if t + PREFETCH_DISTANCE < high:
                        prefetch(x[before + t + PREFETCH_DISTANCE, z : z + dv])
                    o, gate = read[t, :dv], x[before + t, z : z + dv]
                    gated_norm_row(o, dot(o, o), gate, norm_weight, eps, out[row, before + t, first : first + dv])
            for mark in range(rows.marks.shape[0]):
                if rows.marks[mark, 0] == row and rows.marks[mark, 1] == before + SIZE:
                    for s in range(group):
                        for i in range(dk):
                            copy(states[s, i, :dv], bank.states[rows.marks[mark, 2], begin + s, i])
        for s in range(group):
            for i in range(dk):
                copy(states[s, i, :dv], bank.states[lane, begin + s, i])
        for t in range(end, tokens):
            fill(zero, out[row, t, begin * dv : (begin + group) * dv])


@compiled()
def _convolve(x: Array, token: int, first: int, window: Array, taps: Array, out: Array) -> None:
    """Channels first .. first + n of the convolution with SiLU at `token` of x [tokens, channels or more]."""
    last, end = taps.shape[0] - 1, first + out.shape[0]
    if last == 3:
        a = x[token - 3] if token >= 3 else window[token]
        b = x[token - 2] if token >= 2 else window[token + 1]
        c = x[token - 1] if token >= 1 else window[token + 2]
        convolve_four(a, b, c, x[token], first, taps, out)
        return
    multiply(x[token, first:end], taps[last, first:end], out)
    for t in range(last):
        at = token - last + t
        if at >= 0:
            add_product(x[at, first:end], taps[t, first:end], out)
        else:
            add_product(window[last + at, first:end], taps[t, first:end], out)
    activate_all(out)


@compiled(inline=False)
def _unit_pairs(
    x: Array, before: int, low: int, high: int, head: int, key_heads: int, window: Array, taps: Array, pairs: Array
) -> None:
    """Keys, then queries, of tokens low .. high of a chunk, convolved and of unit length; queries also by dk^-0.5.

    Other tokens keep what is there, which need only be finite: their beta is zero and their outputs are not read.
    """
    dk = pairs.shape[1] - PADDING
    for t in range(low, high):
        if t + PREFETCH_DISTANCE < high:
            prefetch(x[before + t + PREFETCH_DISTANCE, head * dk : (head + 1) * dk])
            prefetch(x[before + t + PREFETCH_DISTANCE, (key_heads + head) * dk : (key_heads + head + 1) * dk])
        k, q = pairs[t, :dk], pairs[SIZE + t, :dk]
        _convolve(x, before + t, head * dk, window, taps, q)
        _convolve(x, before + t, (key_heads + head) * dk, window, taps, k)
        l2_normalise(q, one / f32(math.sqrt(dk)))
        l2_normalise(k, one)


@compiled(inline=False)
def _transpose(x: Array, out: Array) -> None:
    """out = x^T, of x [SIZE, n + PADDING], by blocks of rows that stay in the innermost cache."""
    for t in range(0, SIZE, 16):
        for i in range(out.shape[0]):
            for u in range(16):
                out[i, t + u] = x[t + u, i]


@compiled(inline=False)
def _pair_products(pairs: Array, keys_t: Array, ones: Array, products: Array) -> None:
    """k k^T, then q k^T, as far as they are read: of the keys after a token, only those in one tile with it."""
    a, b, c, depth = whole(pairs), whole(keys_t), whole(products), keys_t.shape[0]
    for j in range(0, SIZE, COLUMNS):
        for top in (j, SIZE + j):
            product(below(a, top, 0), below(b, 0, j), depth, ones, zero, below(c, top, j), SIZE - j, COLUMNS, FULL)


@compiled(inline=False)
def _values(
    x: Array,
    before: int,
    low: int,
    high: int,
    value: int,
    key_channels: int,
    window: Array,
    taps: Array,
    rate: Array,
    dt_bias: Array,
    values: Array,
    gates: Gates,
) -> None:
    """beta v of tokens low .. high of a chunk, and what gates make of its decay; elsewhere v, beta and g are zero."""
    dv, value_heads = values.shape[1] - PADDING, rate.shape[0]
    betas = taps.shape[1] + value_heads * dv + value
    first, total = 2 * key_channels + value * dv, zero
    for t in range(SIZE):
        v, beta = values[t, :dv], zero
        if t >= low and t < high:
            if t + PREFETCH_DISTANCE < high:
                prefetch(x[before + t + PREFETCH_DISTANCE, first : first + dv])
            _convolve(x, before + t, first, window, taps, v)
            beta = sigmoid(x[before + t, betas])
            scale(beta, v, v)
            total += log_decay(x[before + t, betas + value_heads] + dt_bias[value], rate[value])
        else:
            fill(zero, v)
        gates.total[t], gates.beta[t] = total, beta
    for t in range(SIZE):
        gates.growth[t] = exp(max(gates.total[t], LOWEST))
        gates.fade[t] = exp(max(total - gates.total[t], LOWEST))
        gates.pull[t] = -gates.beta[t] * gates.growth[t]


@compiled(inline=False)
def _weigh(products: Array, gates: Gates, system: Array, reads: Array) -> None:
    """-diag(beta) L below the diagonal, and tril(q k^T o e^(G_i - G_j)), zero as far above it as a tile reaches.

    On the diagonal of the first is what nobody reads.
    """
    for i in range(SIZE):
        end = i + 1
        _weigh_row(
            gates.total[i],
            gates.total[:end],
            -gates.beta[i],
            products[i, :end],
            products[SIZE + i, :end],
            system[i, :end],
            reads[i, :end],
        )
        fill(zero, reads[i, end : i - i % ROWS + ROWS])


@compiled()
def _weigh_row(total: float, totals: Array, factor: float, same: Array, cross: Array, row: Array, read: Array) -> None:
    """factor x e^(G_i - G_j) of k k^T, and x e^(G_i - G_j) of q k^T, up to the diagonal."""
    for j in range(totals.shape[0]):
        decay = exp(max(total - totals[j], LOWEST))
        row[j] = factor * same[j] * decay
        read[j] = cross[j] * decay


@compiled(inline=False)
def _forward_substitution(system: Array, ones: Array, values: Array) -> None:
    """V' = beta v - ... in place: row i of (I + diag(beta) L) V' = X is x_i and the rows before it, weighed."""
    dv = values.shape[1] - PADDING
    a, x = whole(system), whole(values)
    for top in range(0, SIZE, ROWS):
        if top > 0:
            product(below(a, top, 0), x, top, ones, one, below(x, top, 0), ROWS, dv, FULL)
        for i in range(top + 1, top + ROWS):
            for j in range(top, i):
                add_scaled(system[i, j], values[j, :dv], values[i, :dv])


@compiled(inline=False)
def _chunk(
    pairs: Array,
    system: Array,
    reads: Array,
    gates: Gates,
    ones: Array,
    empty: bool,
    values: Array,
    read: Array,
    state: Array,
) -> None:
    """A chunk of a head: `read` becomes the output before its norm, `state` [dk, dv] that after the chunk.

    Args:
        empty: the state is zero.
        values: beta v, overwritten.
    """
    dk, dv = pairs.shape[1] - PADDING, values.shape[1] - PADDING
    k, s, v, o = whole(pairs), whole(state), whole(values), whole(read)
    if not empty:
        product(k, s, dk, gates.pull, one, v, SIZE, dv, FULL)
        product(below(k, SIZE, 0), s, dk, gates.growth, zero, o, SIZE, dv, FULL)
    _forward_substitution(system, ones, values)
    product(whole(reads), v, SIZE, ones, zero if empty else one, o, SIZE, dv, LOWER)
    for t in range(SIZE):
        scale(gates.fade[t], values[t, :dv], values[t, :dv])
    keep = zero if empty else gates.growth[SIZE - 1]
    product(transpose(pairs), v, SIZE, ones, keep, s, dk, dv, FULL)


@compiled()
def _keep_window(x: Array, tokens: int, window: Array, out: Array) -> None:
    """The convolution's window after so many tokens of x [tokens, channels or more]; `out` may be `window`."""
    size, channels = out.shape
    for t in range(size):
        at = tokens - size + t
        if at >= 0:
            copy(x[at, :channels], out[t])
        else:
            copy(window[size + at], out[t])


@compiled(inline=False)
def _keep_windows(projected: Array, bank: Array, rows: StateRows) -> None:
    """Leave each row's last inputs in its lane, and those before a checkpoint in its entry."""
    for row in range(projected.shape[0]):
        if rows.fresh[row]:
            bank[rows.lanes[row]] = zero
    marks = rows.marks
    for mark in range(marks.shape[0]):
        row = marks[mark, 0]
        before = bank[rows.lanes[row] if rows.fresh[row] else rows.sources[row]]
        _keep_window(projected[row], marks[mark, 1], before, bank[marks[mark, 2]])
    for row in range(projected.shape[0]):
        before = bank[rows.lanes[row] if rows.fresh[row] else rows.sources[row]]
        _keep_window(projected[row], rows.ends[row], before, bank[rows.lanes[row]])
