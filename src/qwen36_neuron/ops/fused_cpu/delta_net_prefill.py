"""Many tokens a sequence of a Gated DeltaNet block: convolution, gates, chunked delta rule and gated norm.

The mathematics are those of `gated_delta_rule_cpu`. Matrix products stay with the matrix library; what is between them
is one pass each, and everything lies in memory as the next product wants it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numba import prange

from ...config import BLOCK_SIZE
from ..gated_delta_rule_cpu import FAINTEST, StateCopy
from .scalar import Array, array, compiled, exp, f32, log_decay, one, sigmoid, zero
from .vectors import (
    activate_all,
    add_four,
    add_product,
    add_scaled,
    convolve_four,
    fill,
    gated_norm_row,
    make_unit,
    multiply,
    scale,
)
from .weights import DeltaNetWeights

LOWEST = f32(FAINTEST)


class Workspace:
    """Memory that one layer after the other works in, so that it stays in the processor's caches."""

    def __init__(self) -> None:
        self._parts: dict[str, torch.Tensor] = {}

    def get(self, name: str, *shape: int) -> torch.Tensor:
        """fp32 memory, whatever was in it before."""
        part = self._parts.get(name)
        if part is None or part.shape != shape:
            part = self._parts[name] = torch.empty(shape)
        return part


def delta_net_prefill(
    projected: torch.Tensor,
    weights: DeltaNetWeights,
    window: torch.Tensor,
    state: torch.Tensor,
    lengths: Sequence[int],
    lead: int,
    workspace: Workspace,
    copies: Sequence[StateCopy] = (),
    fresh: bool = False,
) -> torch.Tensor:
    """All between the projections of a block, by chunks of BLOCK_SIZE tokens on absolute positions.

    Args:
        projected: [batch, tokens, channels + value_heads * dv + 2 * value_heads] fp32: queries, keys, values, gates,
            b, a.
        window: [batch, K - 1, channels], the convolution's inputs before the first token.
        state: [batch, value_heads, dk, dv], changed in place to that after each row's last token.
        lengths: real tokens of each row; the others are padding on the right.
        lead: tokens of the first chunk that earlier calls have run.
        copies: states at chunk boundaries to copy out.
        fresh: all states are zero, so that the first chunk reads nothing from them.
    Returns:
        [batch, tokens, value_heads * dv], zero on padding.
    """
    batch, tokens = projected.shape[:2]
    value_heads, dk, dv = state.shape[1:]
    key_heads, size = weights.key_heads, BLOCK_SIZE
    share, keys, heads = value_heads // key_heads, batch * key_heads, batch * value_heads
    chunks = -(-(lead + tokens) // size)
    ends, inputs = np.asarray(lengths, np.int64), array(projected)

    pairs = workspace.get("pairs", keys, 2 * size, dk)  # keys, then queries, of unit length
    products = workspace.get("products", keys, 2 * size, size)
    inverse, scores = (workspace.get(name, heads, size, size) for name in ("inverse", "scores"))
    v, rest, update, inner = (workspace.get(name, heads, size, dv) for name in ("v", "rest", "update", "inner"))
    decay, beta = (workspace.get(name, heads, size) for name in ("decay", "beta"))  # G and beta
    seen, kept = workspace.get("seen", keys, 2 * size, share * dv), workspace.get("kept", keys, size, share * dv)
    current = workspace.get("current", keys, dk, share * dv)
    by_head = current.view(batch, key_heads, dk, share, dv).transpose(2, 3)  # [batch, key_heads, share, dk, dv]
    by_head.copy_(state.view(by_head.shape))
    keys_t = pairs[:, :size].transpose(1, 2)
    out = torch.empty(batch, tokens, value_heads * dv)
    for index, length in enumerate(lengths):
        out[index, length:] = 0.0
    wanted: dict[int, list[StateCopy]] = {}
    for copy in copies:
        wanted.setdefault(copy.chunk, []).append(copy)
    gates = weights.taps, weights.rate, weights.dt_bias, array(window)
    norm = weights.norm_weight, weights.eps
    prepared = array(pairs), array(v), array(decay), array(beta)
    system = array(products), array(decay), array(beta), array(inverse), array(scores)
    remaining = array(v), array(decay), array(seen), array(rest)
    finish = array(decay), array(seen), array(update), array(inner), ends
    finished = array(kept), array(current), array(out)
    for n in range(chunks):
        before = n * size - lead  # tokens of the call before this chunk, less than 0 if it starts before the call does
        _prepare(inputs, *gates, ends, before, *prepared)
        torch.bmm(pairs, keys_t, out=products)
        _solve(*system)
        if n == 0 and fresh:
            seen.zero_()
        else:
            torch.bmm(pairs, current, out=seen)
        _remaining(*remaining)
        torch.bmm(inverse, rest, out=update)  # V'
        torch.bmm(scores, update, out=inner)
        _finish(inputs, *norm, *finish, before, *finished)
        current.baddbmm_(keys_t, kept)
        for copy in wanted.get(n, ()):
            copy.target.view(by_head.shape[1:]).copy_(by_head[copy.row])
    state.view(by_head.shape).copy_(by_head)
    return out


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


@compiled(parallel=True)
def _prepare(
    projected: Array,
    taps: Array,
    rate: Array,
    dt_bias: Array,
    windows: Array,
    ends: Array,
    before: int,
    pairs: Array,
    v: Array,
    decay: Array,
    beta: Array,
) -> None:
    """Convolution, unit keys and queries, gates of a chunk; all zero on padding. A task is a key head of a row."""
    batch, heads, size, dv = projected.shape[0], v.shape[0], v.shape[1], v.shape[2]
    keys, dk = pairs.shape[0], pairs.shape[2]
    key_heads, share, value_heads = keys // batch, heads // keys, heads // batch
    betas = taps.shape[1] + value_heads * dv
    for key in prange(keys):
        row, head = key // key_heads, key % key_heads
        x, window = projected[row], windows[row]
        for t in range(size):
            token = before + t
            real = token >= 0 and token < ends[row]
            k, q = pairs[key, t], pairs[key, size + t]
            if real:
                _convolve(x, token, head * dk, window, taps, q)
                _convolve(x, token, (key_heads + head) * dk, window, taps, k)
                make_unit(q, one / f32(math.sqrt(dk)))
                make_unit(k, one)
            else:
                fill(zero, q)
                fill(zero, k)
            for s in range(share):
                value, h = head * share + s, key * share + s
                last = decay[h, t - 1] if t > 0 else zero
                if real:
                    _convolve(x, token, 2 * key_heads * dk + value * dv, window, taps, v[h, t])
                    g = log_decay(x[token, betas + value_heads + value] + dt_bias[value], rate[value])
                    decay[h, t] = last + g
                    beta[h, t] = sigmoid(x[token, betas + value])
                else:
                    fill(zero, v[h, t])
                    decay[h, t] = last
                    beta[h, t] = zero


@compiled()
def _relative_row(total: float, totals: Array, out: Array) -> None:
    """e^(G_i - G_j), of a row's part up to the diagonal."""
    for j in range(out.shape[0]):
        out[j] = exp(max(total - totals[j], LOWEST))


@compiled(parallel=True)
def _solve(products: Array, decay: Array, beta: Array, inverse: Array, scores: Array) -> None:
    """T = (I + diag(beta) L)^-1 diag(beta) and tril(q k^T o e^(G_i - G_j)), of a chunk's heads.

    L = tril(k k^T o e^(G_i - G_j), -1). T comes row by row, t_i = e_i - sum over j < i of beta_i L_ij t_j, and its
    columns are scaled at the end. Like the recursion of `triangular`, that forms products of T with parts of L alone.
    """
    heads, size = decay.shape
    share = heads // products.shape[0]
    for h in prange(heads):
        same, cross = products[h // share, :size], products[h // share, size:]
        totals, found, reads = decay[h], inverse[h], scores[h]
        row = np.empty(size, np.float32)
        for i in range(size):
            _relative_row(totals[i], totals[: i + 1], row[: i + 1])
            multiply(row[: i + 1], cross[i, : i + 1], reads[i, : i + 1])
            fill(zero, reads[i, i + 1 :])
            multiply(row[:i], same[i, :i], row[:i])
            scale(-beta[h, i], row[:i], row[:i])
            fill(zero, found[i])
            whole = i - i % 4
            for j in range(0, whole, 4):
                add_four(row[j : j + 4], found[j : j + 4], found[i, : j + 4])
            for j in range(whole, i):
                add_scaled(row[j], found[j, : j + 1], found[i, : j + 1])
            found[i, i] = one
        for i in range(size):
            multiply(found[i, : i + 1], beta[h, : i + 1], found[i, : i + 1])


@compiled()
def _subtract_scaled(x: Array, factor: float, y: Array, out: Array) -> None:
    """out = x - factor y."""
    for j in range(out.shape[0]):
        out[j] = x[j] - factor * y[j]


@compiled(parallel=True)
def _remaining(v: Array, decay: Array, seen: Array, rest: Array) -> None:
    """v - e^G (k S), of the heads of a chunk."""
    heads, size, dv = v.shape
    share = heads // seen.shape[0]
    for task in prange(heads * size):
        h, t = task // size, task % size
        first = h % share * dv
        growth = exp(max(decay[h, t], LOWEST))
        _subtract_scaled(v[h, t], growth, seen[h // share, t, first : first + dv], rest[h, t])


@compiled()
def _output_row(fade: float, update: Array, growth: float, seen: Array, read: Array, kept: Array) -> float:
    """kept = fade update; read += growth seen; the sum of read^2."""
    squares = zero
    for j in range(read.shape[0]):
        kept[j] = fade * update[j]
        read[j] += growth * seen[j]
        squares += read[j] * read[j]
    return squares


@compiled(parallel=True)
def _finish(
    projected: Array,
    norm_weight: Array,
    eps: float,
    decay: Array,
    seen: Array,
    update: Array,
    inner: Array,
    ends: Array,
    before: int,
    kept: Array,
    current: Array,
    out: Array,
) -> None:
    """What follows V' in a chunk: its share that lives on, the faded state, and the gated norm of the output.

    Args:
        projected: [batch, tokens, ...] with the gates in columns channels .. channels + value_heads * dv.
        decay: G, [heads, size]; seen: (k S, q S), [keys, 2 * size, share * dv]; update: V', [heads, size, dv].
        inner: tril(q k^T o e^(G_i - G_j)) V', [heads, size, dv].
        before: tokens of the call before this chunk, less than 0 if it starts before the call does.
        kept: [keys, size, share * dv], e^(G_C - G) V'; current: [keys, dk, share * dv], e^(G_C) S in place.
        out: [batch, tokens, value_heads * dv].
    """
    heads, size, dv = update.shape
    keys, dk = current.shape[0], current.shape[1]
    share, value_heads = heads // keys, heads // out.shape[0]
    gates = 2 * (keys // out.shape[0]) * dk + value_heads * dv
    for h in prange(heads):
        key, first, row = h // share, h % share * dv, h // value_heads
        column = h % value_heads * dv
        last = decay[h, size - 1]
        for t in range(size):
            fade = exp(max(last - decay[h, t], LOWEST))
            growth = exp(max(decay[h, t], LOWEST))
            squares = _output_row(
                fade,
                update[h, t],
                growth,
                seen[key, size + t, first : first + dv],
                inner[h, t],
                kept[key, t, first : first + dv],
            )
            token = before + t
            if token >= 0 and token < ends[row]:
                gate = projected[row, token, gates + column : gates + column + dv]
                gated_norm_row(inner[h, t], squares, gate, norm_weight, eps, out[row, token, column : column + dv])
        keep = exp(max(last, LOWEST))
        for i in range(dk):
            scale(keep, current[key, i, first : first + dv], current[key, i, first : first + dv])
