"""`ops.sampling.sample_all` compiled: a row of logits is read two or three times, and nothing as long as it is sorted.

The most likely tokens are found by the largest logit of each block: of k blocks' maxima the smallest is a bound below
which no token is among the k. Without top-k, a histogram of the probability mass says where in the ranking top-p cuts,
and only what falls into that bin is sorted. What the cuts leave is summed by blocks in the order of ids, and the token
looked for in one of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange

from ..numba.scalar import Array, array, compiled, double_of_bits, float_of_bits, i64, use_threads

BLOCK = 256
"""Logits whose largest is kept: a vocabulary of 248,320 has 970 such blocks."""

BINS_PER_UNIT, BINS = 32, 2048
"""Bins of the histogram for each unit of (largest logit - logit) / temperature, and of them all: the last holds what is
less likely than e^-64 of the most likely token."""

i32: Any = np.int32
"""To Numba a type, to a type checker what makes a number that passes for an int."""

LEAST = i64(-2139095041)
"""The key of minus infinity: such a token has no weight."""


def draw_rows(logits: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """One token a row: int32 [rows].

    Args:
        logits: fp32 [rows, vocab], contiguous.
        params: fp32 [rows, columns], see `ops.sampling.COLUMNS`.
    """
    use_threads(torch.get_num_threads())
    tokens = torch.empty(len(logits), dtype=torch.int32)
    _draw_rows(array(logits).view(np.int32), array(logits), array(params.double()), array(tokens))
    return tokens


@compiled(parallel=True, reorder=False)
def _draw_rows(bits: Array, logits: Array, params: Array, tokens: Array) -> None:
    if tokens.shape[0] == 1:
        tokens[0] = _draw(bits[0], logits[0], params[0])
    else:
        for row in prange(tokens.shape[0]):
            tokens[row] = _draw(bits[row], logits[row], params[row])


@compiled(reorder=False)
def _key(bits: int) -> int:
    """The bits of an fp32 number as an integer in the order of the numbers, and back; both zeros are 0."""
    bits = i32(bits)
    return i32(0) if bits == i32(-2147483648) else bits ^ ((bits >> i32(31)) & i32(0x7FFFFFFF))


@compiled(reorder=False)
def _ordered(key: int, token: int) -> int:
    """Larger for a less likely token, of equal ones for the higher one."""
    return (-i64(key) << i64(32)) | i64(token)


@compiled(reorder=False, inline=False)
def _block_maxima(bits: Array) -> Array:
    """The largest key of every BLOCK: int32 [ceil(vocab / BLOCK)]."""
    count = (bits.shape[0] + BLOCK - 1) // BLOCK
    maxima = np.empty(count, np.int32)
    for block in range(count):
        largest = i32(-2147483648)
        for i in range(block * BLOCK, min(bits.shape[0], (block + 1) * BLOCK)):
            largest = max(largest, _key(bits[i]))
        maxima[block] = largest
    return maxima


@compiled(reorder=False, inline=False)
def _ranked(bits: Array, maxima: Array, least: int) -> Array:
    """Tokens whose key is `least` or more, most likely first, of equal ones the lower: int64 [any number]."""
    count = 0
    for block in range(maxima.shape[0]):
        if maxima[block] >= least:
            for i in range(block * BLOCK, min(bits.shape[0], (block + 1) * BLOCK)):
                count += _key(bits[i]) >= least
    found = np.empty(count, np.int64)
    at = 0
    for block in range(maxima.shape[0]):
        if maxima[block] >= least:
            for i in range(block * BLOCK, min(bits.shape[0], (block + 1) * BLOCK)):
                key = i64(_key(bits[i]))
                if key >= least:
                    found[at] = _ordered(key, i)
                    at += 1
    return np.sort(found) & i64(0xFFFFFFFF)


@compiled(reorder=False)
def _two_to(n: int) -> float:
    """2^n in fp64, -1022 <= n <= 1023."""
    return double_of_bits((i64(n) + i64(1023)) << i64(52))


@compiled(reorder=False)
def _weight(x: float) -> float:
    """e^x in fp64 for x <= 0, 0 below -700.

    Arithmetic alone, so that a loop over it becomes vectors (Cephes, `exp`): with n = round(x / ln 2) and
    r = x - n ln 2, ln 2 in two parts, e^r is 1 + 2 p / (q - p) and 2^n an exponent.
    """
    clamped = max(x, -700.0)
    n = np.floor(clamped * 1.4426950408889634 + 0.5)
    r = clamped - n * 6.93145751953125e-1
    r = r - n * 1.42860682030941723212e-6
    square = r * r
    p = r * ((1.26177193074810590878e-4 * square + 3.02994407707441961300e-2) * square + 0.99999999999999999991)
    q = (3.00198505138664455042e-6 * square + 2.52448340349684104192e-3) * square + 2.27265548208155028766e-1
    q = q * square + 2.0
    return (1.0 + 2.0 * p / (q - p)) * _two_to(i64(n)) if x >= -700.0 else 0.0


@compiled(reorder=False, inline=False)
def _draw(bits: Array, logits: Array, params: Array) -> int:
    temperature, top_k, top_p, min_p, uniform = params[0], params[1], params[2], params[3], params[4]
    maxima = _block_maxima(bits)
    best = _first(bits, maxima, maxima.max())
    top = np.float64(logits[best])
    if temperature <= 0.0 or not np.isfinite(top):
        return best
    if top_k > 0.0:
        k = int(min(top_k, np.float64(bits.shape[0])))
        return _draw_of_first(bits, logits, maxima, k, top, temperature, top_p, min_p, uniform)
    return _draw_of_all(bits, logits, maxima, top, temperature, top_p, min_p, uniform)


@compiled(reorder=False)
def _first(bits: Array, maxima: Array, key: int) -> int:
    """The first token of a key that some token has."""
    block = 0
    while maxima[block] != key:
        block += 1
    i = block * BLOCK
    while _key(bits[i]) != key:
        i += 1
    return i


@compiled(reorder=False, inline=False)
def _draw_of_first(
    bits: Array,
    logits: Array,
    maxima: Array,
    k: int,
    top: float,
    temperature: float,
    top_p: float,
    min_p: float,
    uniform: float,
) -> int:
    """From the k most likely tokens."""
    ids = _ranked(bits, maxima, max(LEAST + i64(1), _bound(bits, maxima, k)))[:k]
    weights = np.zeros(ids.shape[0], np.float64)
    count, total = 0, 0.0
    for i in range(ids.shape[0]):
        weight = _weight((np.float64(logits[ids[i]]) - top) / temperature)
        if weight >= min_p and weight > 0.0:
            weights[i] = weight
            total += weight
            count += 1
    if top_p < 1.0:
        inside, mass = 0, 0.0
        while inside < count and mass < top_p * total:
            mass += weights[inside]
            inside += 1
        count, total = inside, mass
    left = np.sort(ids[:count])
    place, sums, target = -1, 0.0, uniform * total
    while place + 1 < count and sums <= target:
        place += 1
        sums += _weight((np.float64(logits[left[place]]) - top) / temperature)
    return left[place]


@compiled(reorder=False, inline=False)
def _bound(bits: Array, maxima: Array, k: int) -> int:
    """A key that the k most likely tokens reach, and not many others."""
    if k <= maxima.shape[0]:
        return i64(np.sort(maxima)[maxima.shape[0] - k])
    counts = np.zeros(4096, np.int64)  # by the upper bits of the keys
    for i in range(bits.shape[0]):
        counts[(_key(bits[i]) >> i32(20)) + i32(2048)] += 1
    place, above = i64(4095), counts[4095]
    while above < k and place > 0:
        place -= 1
        above += counts[place]
    return (place - 2048) << i64(20)


@compiled(reorder=False)
def _bin(top: float, logit: float, temperature: float) -> int:
    """Which bin of the histogram a logit falls into, never a lower one than a larger logit does."""
    return i64(min((top - np.float64(logit)) / temperature * BINS_PER_UNIT, np.float64(BINS - 1)))


@compiled(reorder=False, inline=False)
def _draw_of_all(
    bits: Array,
    logits: Array,
    maxima: Array,
    top: float,
    temperature: float,
    top_p: float,
    min_p: float,
    uniform: float,
) -> int:
    """From all tokens that min-p leaves."""
    edge = i64(0x7FFFFFFFFFFFFFFF)
    if top_p < 1.0:
        edge = _edge(bits, logits, maxima, top, temperature, top_p, min_p)
    count = maxima.shape[0]
    masses, total = np.zeros(count, np.float64), 0.0
    for block in range(count):
        if _ordered(maxima[block], 0) <= edge:
            masses[block] = _left(bits, logits, block, top, temperature, min_p, edge).sum()
            total += masses[block]
    block, before, target = i64(0), 0.0, uniform * total
    for i in range(count):
        if masses[i] > 0.0:
            before += masses[block] if i != block else 0.0
            block = i
            if before + masses[i] > target:
                break
    weights = _left(bits, logits, block, top, temperature, min_p, edge)
    token = i64(0)
    for i in range(weights.shape[0]):
        if weights[i] > 0.0:
            before, token = before + weights[i], block * BLOCK + i
            if before > target:
                break
    return token


@compiled(reorder=False, inline=False)
def _left(bits: Array, logits: Array, block: int, top: float, temperature: float, min_p: float, edge: int) -> Array:
    """Weights of a block's tokens, 0 of those that min-p or the edge cuts off: fp64 [BLOCK or fewer]."""
    start = block * BLOCK
    weights = np.empty(min(BLOCK, logits.shape[0] - start), np.float64)
    for i in range(weights.shape[0]):
        weights[i] = _weight((np.float64(logits[start + i]) - top) / temperature)
    for i in range(weights.shape[0]):
        stays = weights[i] >= min_p and _ordered(_key(bits[start + i]), start + i) <= edge
        weights[i] = weights[i] if stays else 0.0
    return weights


@compiled(reorder=False, inline=False)
def _edge(bits: Array, logits: Array, maxima: Array, top: float, temperature: float, top_p: float, min_p: float) -> int:
    """The last token in the ranking that top-p leaves, as `_ordered` has it."""
    masses = np.zeros(BINS, np.float64)
    weights, places = np.empty(BLOCK, np.float64), np.empty(BLOCK, np.int64)
    for start in range(0, logits.shape[0], BLOCK):
        count = min(BLOCK, logits.shape[0] - start)
        for i in range(count):
            weights[i] = _weight((np.float64(logits[start + i]) - top) / temperature)
        for i in range(count):
            places[i] = _bin(top, logits[start + i], temperature)
        for i in range(count):
            masses[places[i]] += weights[i] if weights[i] >= min_p else 0.0
    target = top_p * masses.sum()
    place, sums = -1, 0.0
    for i in range(BINS):
        if masses[i] > 0.0:
            sums += masses[place] if place >= 0 else 0.0
            place = i
            if sums + masses[i] >= target:
                break
    edge = i64(0)
    ranked = _in_bin(bits, logits, maxima, place, top, temperature)
    for i in range(ranked.shape[0]):
        weight = _weight((np.float64(logits[ranked[i] & i64(0xFFFFFFFF)]) - top) / temperature)
        if weight >= min_p:
            sums, edge = sums + weight, ranked[i]
            if sums >= target:
                break
    return edge


@compiled(reorder=False, inline=False)
def _in_bin(bits: Array, logits: Array, maxima: Array, place: int, top: float, temperature: float) -> Array:
    """The tokens of a bin as `_ordered` has them, most likely first: int64 [any number]."""
    found = np.empty(bits.shape[0], np.int64)
    count = 0
    for block in range(maxima.shape[0]):
        if _bin(top, float_of_bits(_key(maxima[block])), temperature) <= place:
            for i in range(block * BLOCK, min(bits.shape[0], (block + 1) * BLOCK)):
                if _bin(top, logits[i], temperature) == place:
                    found[count] = _ordered(_key(bits[i]), i)
                    count += 1
    return np.sort(found[:count])
