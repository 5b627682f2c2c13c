"""One token a sequence of a Gated DeltaNet block: convolution, gates, delta rule and gated norm."""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from ..numba.scalar import Array, compiled, f32, log_decay, one, sigmoid, zero
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
)


@compiled()
def _convolve(x: Array, first: int, window: Array, taps: Array, out: Array) -> None:
    """The causal convolution with SiLU of channels first .. first + n, whose window moves on by one token.

    Args:
        x: [channels or more], the token; window: [K - 1, channels]; taps: [K, channels]; out: [n].
    """
    last, end = taps.shape[0] - 1, first + out.shape[0]
    if last == 3:
        convolve_four(window[0], window[1], window[2], x, first, taps, out)
    else:
        multiply(x[first:end], taps[last, first:end], out)
        for t in range(last):
            add_product(window[t, first:end], taps[t, first:end], out)
        activate_all(out)
    for t in range(last - 1):
        copy(window[t + 1, first:end], window[t, first:end])
    copy(x[first:end], window[last - 1, first:end])


@compiled()
def _step(state: Array, q: Array, k: Array, v: Array, match: float, decay: float, beta: float, out: Array) -> None:
    """One step of a head: out = S_new^T q, with S [dk, dv] changed in place, read from memory once.

    With delta = beta (v - e^g k^T S), the new state is e^g S + k delta^T, and q^T of it is e^g q^T S + (q.k) delta.
    """
    dk, dv = state.shape
    delta = np.zeros(dv, np.float32)
    fill(zero, out)
    whole = dk - dk % 4
    for i in range(0, whole, 4):
        _read_four(state[i : i + 4], k[i : i + 4], q[i : i + 4], delta, out)
    for i in range(whole, dk):
        add_scaled(k[i], state[i], delta)
        add_scaled(q[i], state[i], out)
    for j in range(dv):
        delta[j] = beta * (v[j] - decay * delta[j])
        out[j] = decay * out[j] + match * delta[j]
    for i in range(dk):
        _write(decay, k[i], delta, state[i])


@compiled()
def _read_four(rows: Array, k: Array, q: Array, by_key: Array, by_query: Array) -> None:
    """by_key += k^T rows and by_query += q^T rows, of rows [4, n]: the sums are loaded and stored once for four."""
    k0, k1, k2, k3 = k[0], k[1], k[2], k[3]
    q0, q1, q2, q3 = q[0], q[1], q[2], q[3]
    for j in range(by_key.shape[0]):
        s0, s1, s2, s3 = rows[0, j], rows[1, j], rows[2, j], rows[3, j]
        by_key[j] += k0 * s0 + k1 * s1 + k2 * s2 + k3 * s3
        by_query[j] += q0 * s0 + q1 * s1 + q2 * s2 + q3 * s3


@compiled()
def _write(decay: float, k: float, delta: Array, row: Array) -> None:
    """row = decay row + k delta."""
    for j in range(row.shape[0]):
        row[j] = decay * row[j] + k * delta[j]


@compiled()
def _copy_or_zero(source: Array, zeroed: bool, out: Array) -> None:
    """out = source, or zeros."""
    if zeroed:
        fill(zero, out)
    else:
        copy(source, out)


@compiled(parallel=True)
def delta_net_step(
    projected: Array,
    taps: Array,
    rate: Array,
    dt_bias: Array,
    norm_weight: Array,
    eps: float,
    windows: Array,
    states: Array,
    lanes: Array,
    sources: Array,
    fresh: Array,
    key_heads: int,
    out: Array,
) -> None:
    """All between the projections of a block.

    A task is a key head of a row with the value heads that share it: it owns their channels of the window.

    Args:
        projected: [batch, channels + value_heads * dv + 2 * value_heads] fp32: queries, keys, values, gates, b, a.
        taps: [K, channels], the convolution's weight.
        rate, dt_bias: [value_heads]; g = rate softplus(a + dt_bias).
        norm_weight: [dv], of the gated norm.
        windows: [entries, K - 1, channels]; states: [entries, value_heads, dk, dv]; lanes are changed in place.
        lanes: int64 [batch], all different, the entries where the states are left.
        sources: int64 [batch], the entries that they are read from, a row's lane or one that is nobody's.
        fresh: bool [batch], rows whose state is zero whatever its entry holds.
        out: [batch, value_heads * dv], the result.
    """
    value_heads, dk, dv = states.shape[1], states.shape[2], states.shape[3]
    share, gates = value_heads // key_heads, taps.shape[1]
    betas = gates + value_heads * dv
    for task in prange(projected.shape[0] * key_heads):
        row, head = task // key_heads, task % key_heads
        lane, origin, starts = lanes[row], sources[row], fresh[row]
        x, window, past = projected[row], windows[lane], windows[origin]
        moved = starts or origin != lane
        if moved:
            for t in range(window.shape[0]):
                for part in range(2):
                    first = (part * key_heads + head) * dk
                    _copy_or_zero(past[t, first : first + dk], starts, window[t, first : first + dk])
        q, k, v, read = (
            np.empty(dk, np.float32),
            np.empty(dk, np.float32),
            np.empty(dv, np.float32),
            np.empty(dv, np.float32),
        )
        _convolve(x, head * dk, window, taps, q)
        _convolve(x, (key_heads + head) * dk, window, taps, k)
        l2_normalise(q, one / f32(math.sqrt(dk)))
        l2_normalise(k, one)
        match = dot(q, k)
        for s in range(share):
            value = head * share + s
            if moved:
                first = 2 * key_heads * dk + value * dv
                for t in range(window.shape[0]):
                    _copy_or_zero(past[t, first : first + dv], starts, window[t, first : first + dv])
                for i in range(dk):
                    _copy_or_zero(states[origin, value, i], starts, states[lane, value, i])
            _convolve(x, 2 * key_heads * dk + value * dv, window, taps, v)
            decay = f32(math.exp(log_decay(x[betas + value_heads + value] + dt_bias[value], rate[value])))
            _step(states[lane, value], q, k, v, match, decay, sigmoid(x[betas + value]), read)
            column = value * dv
            gate = x[gates + column : gates + column + dv]
            gated_norm_row(read, dot(read, read), gate, norm_weight, eps, out[row, column : column + dv])
