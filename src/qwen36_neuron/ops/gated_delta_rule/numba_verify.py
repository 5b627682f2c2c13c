"""A few tokens a sequence of a Gated DeltaNet block, of which the last may be drafts: what these change is not kept.

With S the state that a row begins with and D_i the product of e^g of tokens 0 .. i, token i changes it by
k_i delta_i^T, where delta_i = beta_i (v_i - D_i k_i^T S - sum over j < i of (D_i / D_j) (k_i . k_j) delta_j). So S is
read once, for all keys and queries in one product; and it is written once, by the tokens that are confirmed:
D_c S + sum of (D_c / D_j) k_j delta_j^T. Drafts read the same S and one another's deltas, and need no copy of it. The
quotients are kept as products of e^g, as the recurrence has them, not as a difference of sums.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from ..numba.drafts import Factors, VerifyRows
from ..numba.product import FULL, PADDING, ROWS, Part, product, transpose, whole
from ..numba.scalar import Array, compiled, f32, i64, log_decay, one, sigmoid, zero
from ..numba.states import Entries
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
    scale,
)

Small = tuple[Array, Array, Array, Array, float]


@compiled(parallel=True)
def delta_net_verify(
    projected: Array, small: Small, key_heads: int, bank: Entries, pending: Factors, rows: VerifyRows, out: Array
) -> None:
    """All between the projections of a block.

    A task is a key head of a row with the value heads that share it: it owns their channels of the window.

    Args:
        projected: [positions, channels + value_heads * dv + 2 * value_heads] fp32: queries, keys, values, gates, b, a.
        small: taps [K, channels], rate and dt_bias [value_heads], the norm's weight [dv] and its epsilon.
        bank: lanes are left with what their confirmed tokens make of them, entries of checkpoints likewise.
        pending: factors of accepted drafts are read, and those of the new ones written in their place.
        out: [positions, value_heads * dv], the result.
    """
    taps, dk, dv = small[0], bank.states.shape[2], bank.states.shape[3]
    share = bank.states.shape[1] // key_heads
    for task in prange(rows.lanes.shape[0] * key_heads):
        row, head = task // key_heads, task % key_heads
        count = rows.accepted[row] + rows.first[row + 1] - rows.first[row]
        vectors = count + rows.first[row + 1] - rows.first[row]
        tall = (vectors + ROWS - 1) // ROWS * ROWS
        pairs = np.zeros((tall, dk + PADDING), np.float32)
        matches = np.empty((vectors, count), np.float32)
        _pairs(projected, taps, head, key_heads, bank.windows, pending, rows, row, pairs, matches)
        read = np.empty((tall, dv + PADDING), np.float32)
        values = np.empty((count, dv + PADDING), np.float32)
        for s in range(share):
            value = head * share + s
            at = 2 * key_heads * dk + value * dv
            _convolve(projected, taps, at, dv, bank.windows, pending.inputs, rows, row, values, rows.accepted[row])
            _head(projected, small, value, pairs, matches, bank, pending, rows, row, values, read, out)


@compiled(inline=False)
def _convolve(
    projected: Array,
    taps: Array,
    at: int,
    width: int,
    windows: Array,
    inputs: Array,
    rows: VerifyRows,
    row: int,
    out: Array,
    top: int,
) -> None:
    """The causal convolution with SiLU of a row's channels at .. at + width, into rows `top` and on of out.

    Its inputs are the window, those of accepted drafts and the new ones; window, checkpoints and drafts keep theirs.
    """
    size, end = windows.shape[1], at + width
    lane, source, accepted, tokens = rows.lanes[row], rows.sources[row], rows.accepted[row], rows.tokens[row]
    begin, count = rows.first[row], rows.first[row + 1] - rows.first[row]
    joined = np.empty((size + accepted + count, width), np.float32)
    for t in range(size):
        if rows.fresh[row]:
            fill(zero, joined[t])
        else:
            copy(windows[source, t, at:end], joined[t])
    for t in range(accepted):
        copy(inputs[lane, t, at:end], joined[size + t])
    for t in range(count):
        copy(projected[begin + t, at:end], joined[size + accepted + t])

    weight = np.empty((size + 1, width), np.float32)
    for t in range(size + 1):
        copy(taps[t, at:end], weight[t])
    for t in range(count):
        first, found = accepted + t, out[top + t, :width]
        if size == 3:
            convolve_four(joined[first], joined[first + 1], joined[first + 2], joined[first + 3], 0, weight, found)
        else:
            multiply(joined[first + size], weight[size], found)
            for i in range(size):
                add_product(joined[first + i], weight[i], found)
            activate_all(found)

    for mark in range(rows.marks.shape[0]):
        if rows.marks[mark, 0] == row:
            for t in range(size):
                copy(joined[rows.marks[mark, 1] + t], windows[rows.marks[mark, 2], t, at:end])
    for t in range(size):
        copy(joined[accepted + tokens + t], windows[lane, t, at:end])
    for t in range(count - tokens):
        copy(projected[begin + tokens + t, at:end], inputs[lane, t, at:end])


@compiled(inline=False)
def _pairs(
    projected: Array,
    taps: Array,
    head: int,
    key_heads: int,
    windows: Array,
    pending: Factors,
    rows: VerifyRows,
    row: int,
    pairs: Array,
    matches: Array,
) -> None:
    """Keys of accepted and new tokens, then queries of the new ones, of unit length; queries also by dk^-0.5.

    Args:
        matches: [keys + queries, keys], products with the keys of the tokens before a key's, up to a query's own.
    """
    count, dk = matches.shape[1], pairs.shape[1] - PADDING
    lane, accepted, tokens = rows.lanes[row], rows.accepted[row], rows.tokens[row]
    _convolve(projected, taps, head * dk, dk, windows, pending.inputs, rows, row, pairs, count)
    _convolve(projected, taps, (key_heads + head) * dk, dk, windows, pending.inputs, rows, row, pairs, accepted)
    for t in range(accepted):
        copy(pending.k[lane, t, head], pairs[t, :dk])
    for t in range(accepted + tokens, count):
        copy(pairs[t, :dk], pending.k[lane, t - accepted - tokens, head])
    for t in range(count):
        l2_normalise(pairs[t, :dk], one)
        for i in range(t):
            matches[t, i] = dot(pairs[t, :dk], pairs[i, :dk])
    for t in range(accepted, count):
        place = count + t - accepted
        l2_normalise(pairs[place, :dk], one / f32(math.sqrt(dk)))
        for i in range(t + 1):
            matches[place, i] = dot(pairs[place, :dk], pairs[i, :dk])


@compiled(inline=False)
def _head(
    projected: Array,
    small: Small,
    value: int,
    pairs: Array,
    matches: Array,
    bank: Entries,
    pending: Factors,
    rows: VerifyRows,
    row: int,
    values: Array,
    read: Array,
    out: Array,
) -> None:
    """A value head of a row.

    Args:
        values: [count, dv + PADDING], those of new tokens convolved; overwritten.
        read: [keys + queries, dv + PADDING], overwritten.
    """
    taps, rate, dt_bias, norm_weight, eps = small
    value_heads, dk, dv = bank.states.shape[1], bank.states.shape[2], bank.states.shape[3]
    lane, source, fresh = rows.lanes[row], rows.sources[row], rows.fresh[row]
    accepted, confirmed, count = rows.accepted[row], rows.accepted[row] + rows.tokens[row], values.shape[0]
    gates, column = taps.shape[1], value * dv
    betas = gates + value_heads * dv + value
    memory, ones = bank.states.reshape(bank.states.size), np.full(max(dk, pairs.shape[0]), one, np.float32)
    if fresh:
        for t in range(read.shape[0]):
            fill(zero, read[t])
    else:
        state = Part(memory, (source * value_heads + value) * dk * dv, dv, 1)
        product(whole(pairs), state, dk, ones, zero, whole(read), i64(read.shape[0]), dv, FULL)

    growth, fades = one, np.empty(count, np.float32)  # D_t, and D_t / D_i
    for t in range(count):
        position = rows.first[row] + t - accepted
        v = values[t, :dv]
        if t < accepted:
            copy(pending.v[lane, t, value], v)
            g, beta = pending.g[lane, t, value], pending.beta[lane, t, value]
        else:
            g = f32(log_decay(projected[position, betas + value_heads] + dt_bias[value], rate[value]))
            beta = f32(sigmoid(projected[position, betas]))
        if t >= confirmed:
            copy(v, pending.v[lane, t - confirmed, value])
            pending.g[lane, t - confirmed, value] = g
            pending.beta[lane, t - confirmed, value] = beta
        decay = f32(math.exp(g))
        growth *= decay
        add_scaled(-growth, read[t, :dv], v)
        for i in range(t):
            fades[i] *= decay
            add_scaled(-fades[i] * matches[t, i], values[i, :dv], v)
        scale(beta, v, v)
        fades[t] = one
        if t >= accepted:
            o = read[count + t - accepted, :dv]
            scale(growth, o, o)
            for i in range(t + 1):
                add_scaled(fades[i] * matches[count + t - accepted, i], values[i, :dv], o)
            gate = projected[position, gates + column : gates + column + dv]
            gated_norm_row(o, dot(o, o), gate, norm_weight, eps, out[position, column : column + dv])
        if t < confirmed:
            for mark in range(rows.marks.shape[0]):
                if rows.marks[mark, 0] == row and rows.marks[mark, 1] == t + 1:
                    _keep(bank.states, rows.marks[mark, 2], source, fresh, value, growth, fades, t + 1, pairs, values)
            if t + 1 == confirmed:
                _keep(bank.states, lane, source, fresh, value, growth, fades, t + 1, pairs, values)


@compiled(inline=False)
def _keep(
    states: Array,
    entry: int,
    source: int,
    fresh: bool,
    value: int,
    growth: float,
    fades: Array,
    count: int,
    keys: Array,
    deltas: Array,
) -> None:
    """Leave in an entry what `count` tokens make of the state at `source`: growth S + sum of fade k delta^T."""
    value_heads, dk, dv = states.shape[1], states.shape[2], states.shape[3]
    if entry != source and not fresh:
        for i in range(dk):
            copy(states[source, value, i], states[entry, value, i])
    weighed, ones = np.empty((count, dv + PADDING), np.float32), np.full(dk, one, np.float32)
    for t in range(count):
        scale(fades[t], deltas[t, :dv], weighed[t, :dv])
    state = Part(states.reshape(states.size), (entry * value_heads + value) * dk * dv, dv, 1)
    product(transpose(keys), whole(weighed), count, ones, zero if fresh else growth, state, dk, dv, FULL)
