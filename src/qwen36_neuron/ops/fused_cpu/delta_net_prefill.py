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
from .vectors import activate_all, add_product, add_scaled, fill, gated_norm_row, make_unit, multiply, scale
from .weights import DeltaNetWeights

LOWEST = f32(FAINTEST)


def delta_net_prefill(
    projected: torch.Tensor,
    weights: DeltaNetWeights,
    window: torch.Tensor,
    state: torch.Tensor,
    lengths: Sequence[int],
    lead: int,
    copies: Sequence[StateCopy] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """All between the projections of a block, by chunks of BLOCK_SIZE tokens on absolute positions.

    Args:
        projected: [batch, tokens, channels + value_heads * dv + 2 * value_heads] fp32: queries, keys, values, gates,
            b, a.
        window: [batch, K - 1, channels], the convolution's inputs before the first token.
        state: [batch, value_heads, dk, dv], not changed.
        lengths: real tokens of each row; the others are padding on the right.
        lead: tokens of the first chunk that earlier calls have run.
        copies: states at chunk boundaries to copy out.
    Returns:
        ([batch, tokens, value_heads * dv], zero on padding, and the state after each row's last token).
    """
    batch, tokens = projected.shape[:2]
    value_heads, dk, dv = state.shape[1:]
    key_heads, size = weights.key_heads, BLOCK_SIZE
    share, keys, heads = value_heads // key_heads, batch * key_heads, batch * value_heads
    chunks = -(-(lead + tokens) // size)
    ends = np.asarray(lengths, np.int64)
    inputs = array(projected)

    pairs = torch.empty(chunks, keys, 2, size, dk)  # keys, then queries, of unit length
    v = torch.empty(chunks, heads, size, dv)
    decay, beta = torch.empty(chunks, heads, size), torch.empty(chunks, heads, size)  # G and beta
    _prepare(
        inputs,
        weights.taps,
        weights.rate,
        weights.dt_bias,
        array(window),
        ends,
        lead,
        array(pairs.view(chunks, batch, key_heads, 2, size, dk)),
        array(v.view(chunks, batch, key_heads, share, size, dv)),
        array(decay.view(chunks, batch, key_heads, share, size)),
        array(beta.view(chunks, batch, key_heads, share, size)),
    )
    products = torch.bmm(pairs.view(-1, 2 * size, dk), pairs[:, :, 0].flatten(0, 1).transpose(1, 2))
    inverse, scores = torch.empty(chunks, heads, size, size), torch.empty(chunks, heads, size, size)
    _solve(array(products.view(chunks, keys, 2, size, size)), array(decay), array(beta), array(inverse), array(scores))

    current = torch.empty(keys, dk, share, dv).copy_(state.view(keys, share, dk, dv).transpose(1, 2)).flatten(2)
    unit_keys_t = pairs[:, :, 0].transpose(-1, -2)
    rest, update, inner = (torch.empty(heads, size, dv) for _ in range(3))
    seen, kept = torch.empty(keys, 2 * size, share * dv), torch.empty(keys, size, share * dv)
    out = torch.zeros(batch, tokens, value_heads * dv)
    wanted: dict[int, list[StateCopy]] = {}
    for copy in copies:
        wanted.setdefault(copy.chunk, []).append(copy)
    v_, decay_, seen_, rest_, update_, inner_, kept_, current_, out_ = (
        array(x) for x in (v, decay, seen, rest, update, inner, kept, current, out)
    )
    for n in range(chunks):
        torch.bmm(pairs[n].view(keys, 2 * size, dk), current, out=seen)
        _remaining(v_[n], decay_[n], seen_, rest_)
        torch.bmm(inverse[n], rest, out=update)  # V'
        torch.bmm(scores[n], update, out=inner)
        _finish(
            inputs, weights.norm_weight, weights.eps, decay_[n], seen_, update_, inner_, ends, n * size - lead, kept_, current_, out_
        )
        current.baddbmm_(unit_keys_t[n], kept)
        for copy in wanted.get(n, ()):
            copy.target.copy_(_by_head(current, batch, share)[copy.row])
    return out, _by_head(current, batch, share)


def _by_head(states: torch.Tensor, batch: int, share: int) -> torch.Tensor:
    """[batch * key_heads, dk, share * dv] -> [batch, value_heads, dk, dv]."""
    keys, dk, width = states.shape
    return states.view(keys, dk, share, width // share).transpose(1, 2).reshape(batch, -1, dk, width // share)


@compiled()
def _convolve(x: Array, token: int, first: int, window: Array, taps: Array, out: Array) -> None:
    """Channels first .. first + n of the convolution with SiLU at `token` of x [tokens, channels or more]."""
    last, end = taps.shape[0] - 1, first + out.shape[0]
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
    lead: int,
    pairs: Array,
    v: Array,
    decay: Array,
    beta: Array,
) -> None:
    """Convolution, unit keys and queries, gates; all zero on padding. A task is a key head of a row's chunk."""
    chunks, batch, key_heads = pairs.shape[0], pairs.shape[1], pairs.shape[2]
    share, size, dk, dv = v.shape[3], pairs.shape[4], pairs.shape[5], v.shape[5]
    value_heads = key_heads * share
    betas = taps.shape[1] + value_heads * dv
    for task in prange(chunks * batch * key_heads):
        head = task % key_heads
        row = task // key_heads % batch
        chunk = task // (key_heads * batch)
        x, window = projected[row], windows[row]
        for t in range(size):
            token = chunk * size + t - lead
            real = token >= 0 and token < ends[row]
            k, q = pairs[chunk, row, head, 0, t], pairs[chunk, row, head, 1, t]
            if real:
                _convolve(x, token, head * dk, window, taps, q)
                _convolve(x, token, (key_heads + head) * dk, window, taps, k)
                make_unit(q, one / f32(math.sqrt(dk)))
                make_unit(k, one)
            else:
                fill(zero, q)
                fill(zero, k)
            for s in range(share):
                value = head * share + s
                target = v[chunk, row, head, s, t]
                before = decay[chunk, row, head, s, t - 1] if t > 0 else zero
                if real:
                    _convolve(x, token, 2 * key_heads * dk + value * dv, window, taps, target)
                    g = log_decay(x[token, betas + value_heads + value] + dt_bias[value], rate[value])
                    decay[chunk, row, head, s, t] = before + g
                    beta[chunk, row, head, s, t] = sigmoid(x[token, betas + value])
                else:
                    fill(zero, target)
                    decay[chunk, row, head, s, t] = before
                    beta[chunk, row, head, s, t] = zero


@compiled()
def _weigh(total: float, totals: Array, factor: float, products: Array, out: Array) -> None:
    """out = factor e^(G_i - G_j) products, of a row's part up to or before the diagonal."""
    for j in range(out.shape[0]):
        out[j] = factor * exp(max(total - totals[j], LOWEST)) * products[j]


@compiled(parallel=True)
def _solve(products: Array, decay: Array, beta: Array, inverse: Array, scores: Array) -> None:
    """T = (I + diag(beta) L)^-1 diag(beta) and tril(q k^T o e^(G_i - G_j)), of all chunks and heads.

    L = tril(k k^T o e^(G_i - G_j), -1). T comes row by row: t_i = e_i - sum over j < i of beta_i L_ij t_j, and its columns
    are scaled at the end. Like the recursion of `triangular`, that forms products of T with parts of L alone.
    """
    chunks, heads, size = decay.shape
    share = heads // products.shape[1]
    for task in prange(chunks * heads):
        n, h = task // heads, task % heads
        same, cross = products[n, h // share, 0], products[n, h // share, 1]
        totals, found, reads = decay[n, h], inverse[n, h], scores[n, h]
        row = np.empty(size, np.float32)
        for i in range(size):
            _weigh(totals[i], totals[:i], -beta[n, h, i], same[i, :i], row[:i])
            _weigh(totals[i], totals[: i + 1], one, cross[i, : i + 1], reads[i, : i + 1])
            fill(zero, reads[i, i + 1 :])
            fill(zero, found[i])
            for j in range(i):
                add_scaled(row[j], found[j, : j + 1], found[i, : j + 1])
            found[i, i] = one
        for i in range(size):
            multiply(found[i, : i + 1], beta[n, h, : i + 1], found[i, : i + 1])


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
            scale(fade, update[h, t], kept[key, t, first : first + dv])
            token = before + t
            if token >= 0 and token < ends[row]:
                growth = exp(max(decay[h, t], LOWEST))
                add_scaled(growth, seen[key, size + t, first : first + dv], inner[h, t])
                gate = projected[row, token, gates + column : gates + column + dv]
                gated_norm_row(inner[h, t], gate, norm_weight, eps, out[row, token, column : column + dv])
        keep = exp(max(last, LOWEST))
        for i in range(dk):
            scale(keep, current[key, i, first : first + dv], current[key, i, first : first + dv])
