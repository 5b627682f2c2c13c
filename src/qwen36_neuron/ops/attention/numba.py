"""Many tokens a sequence of gated attention over paged keys and values.

Scores are computed transposed, keys by queries: then keys and values are read as they lie in the cache, the queries of
a task are transposed once for all keys, and the softmax goes along vectors of queries.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from ...config import BLOCK_SIZE
from ..numba.product import COLUMNS, FULL, PADDING, Part, below, product, transpose, whole
from ..numba.rows import gate_row
from ..numba.scalar import Array, compiled, exp, f32, i64, one, zero
from ..numba.vectors import copy, fill, norm_row, rotate_row, scale
from .numba_step import LOWEST

QUERIES = 128
"""Queries of a task, one of each head that shares the keys of a token."""

BLOCK = i64(BLOCK_SIZE)

SPAN = 2
"""Blocks of keys between two corrections of what has been summed."""


@compiled(parallel=True)
def store_keys(
    kv: Array,
    weight: Array,
    eps: float,
    cos: Array,
    sin: Array,
    tables: Array,
    starts: Array,
    ends: Array,
    keys: Array,
    values: Array,
) -> None:
    """Norm and rotate the keys of new tokens, and put them and their values into the cache.

    Args:
        kv: [batch, tokens, 2 * kv_heads * n] fp32, keys first; weight: [n]; cos, sin: [batch, tokens, dim / 2].
        tables: int32 [batch, n], the blocks of each sequence.
        starts, ends: int64 [batch], tokens of each sequence before and after.
        keys, values: [positions, kv_heads, n], BLOCK_SIZE positions a block.
    """
    tokens, heads, size = kv.shape[1], keys.shape[1], keys.shape[2]
    for task in prange(kv.shape[0] * tokens):
        row, token = task // tokens, task % tokens
        position = starts[row] + token
        if position < ends[row]:
            place = np.int64(tables[row, position // BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE
            for h in range(heads):
                key_at, value_at = h * size, (heads + h) * size
                norm_row(kv[row, token, key_at : key_at + size], weight, eps, one, keys[place, h])
                rotate_row(keys[place, h], cos[row, token], sin[row, token])
                copy(kv[row, token, value_at : value_at + size], values[place, h])


@compiled(inline=False)
def _transpose_queries(
    qg: Array, weight: Array, eps: float, cos: Array, sin: Array, kv: int, group: int, out: Array
) -> None:
    """Normed, rotated and scaled queries of tokens qg [tokens, ...], into the columns of out [n, ...]."""
    size = out.shape[0]
    held = np.empty((16, size), np.float32)
    for first in range(0, qg.shape[0] * group, 16):
        many = min(16, qg.shape[0] * group - first)
        for u in range(many):
            token, g = (first + u) // group, (first + u) % group
            at = (kv * group + g) * size
            norm_row(qg[token, at : at + size], weight, eps, one / f32(math.sqrt(size)), held[u])
            rotate_row(held[u], cos[token], sin[token])
        for i in range(size):
            for u in range(many):
                out[i, first + u] = held[u, i]


@compiled()
def _running_maximum(x: Array, out: Array) -> None:
    for j in range(out.shape[0]):
        out[j] = max(out[j], x[j])


@compiled()
def _weigh(x: Array, peak: Array, total: Array) -> None:
    """x = e^(x - peak), added to the totals."""
    for j in range(peak.shape[0]):
        x[j] = exp(x[j] - peak[j])
        total[j] += x[j]


@compiled(inline=False)
def _online_softmax(
    scores: Array, count: int, open_until: int, group: int, peak: Array, total: Array, read: Array
) -> None:
    """Softmax numerators of the first `count` keys of scores [keys, queries]; what was summed is brought in line.

    Args:
        open_until: keys that the first token sees; a later token sees one more each.
        peak, total: [queries], the largest score so far and the sum of numerators; read: [queries, n], of values.
    """
    width = peak.shape[0]
    before = np.empty(width, np.float32)
    copy(peak, before)
    for j in range(count):
        fill(LOWEST, scores[j, : min(width, max(0, j - open_until + 1) * group)])
        _running_maximum(scores[j, :width], peak)
    for c in range(width):
        fade = exp(before[c] - peak[c])
        total[c] *= fade
        if fade != one:
            scale(fade, read[c], read[c])
    for j in range(count):
        _weigh(scores[j, :width], peak, total)


@compiled(parallel=True)
def attention_prefill(
    qg: Array,
    weight: Array,
    eps: float,
    cos: Array,
    sin: Array,
    tables: Array,
    ends: Array,
    counts: Array,
    keys: Array,
    values: Array,
    out: Array,
) -> None:
    """Causal attention of each row's last tokens to all of its tokens, and the gate.

    A task is a few tokens' queries of one kv head; tasks of early and of late tokens, which see more, take turns.

    Args:
        qg: [batch, tokens, 2 * query_heads * n] fp32: queries, which are normed and rotated here, then gates.
        weight: [n], of the queries' norm; cos, sin: [batch, tokens, dim / 2].
        tables: int32 [batch, n], the blocks of each sequence; ends: int64 [batch], its tokens.
        counts: int64 [batch], how many of the tokens of qg are real: the row's last, padding on the right.
        keys, values: [positions, kv_heads, n], the new tokens' already stored.
        out: [batch, tokens, query_heads * n], the result; zero on padding.
    """
    kv_heads, size = keys.shape[1], keys.shape[2]
    heads = out.shape[2] // size
    group = heads // kv_heads
    together = max(1, QUERIES // group)
    width = (together * group + COLUMNS - 1) // COLUMNS * COLUMNS
    parts = (qg.shape[1] + together - 1) // together
    for task in prange(qg.shape[0] * parts * kv_heads):
        row, turn, kv = task // (parts * kv_heads), task // kv_heads % parts, task % kv_heads
        first = (turn // 2 if turn % 2 == 0 else parts - 1 - turn // 2) * together
        stop = min(first + together, counts[row])
        for t in range(max(first, stop), min(first + together, qg.shape[1])):
            fill(zero, out[row, t, kv * group * size : (kv + 1) * group * size])
        if stop > first:
            seen = ends[row] - counts[row] + first + 1  # keys that the first token sees
            queries = np.zeros((size, width + PADDING), np.float32)
            _transpose_queries(
                qg[row, first:stop], weight, eps, cos[row, first:stop], sin[row, first:stop], kv, group, queries
            )
            read = np.zeros((width, size + PADDING), np.float32)
            peak, total = np.full(width, LOWEST, np.float32), np.zeros(width, np.float32)
            _attend(queries, kv, group, seen, seen + stop - first - 1, tables[row], keys, values, peak, total, read)
            for c in range((stop - first) * group):
                t, at = first + c // group, (kv * group + c % group) * size
                found, gates = out[row, t, at : at + size], heads * size + at
                scale(one / total[c], read[c, :size], found)
                gate_row(found, qg[row, t, gates : gates + size])


@compiled(inline=False)
def _attend(
    queries: Array,
    kv: int,
    group: int,
    seen: int,
    limit: int,
    table: Array,
    keys: Array,
    values: Array,
    peak: Array,
    total: Array,
    read: Array,
) -> None:
    """All keys that a task's queries see, `SPAN` blocks at a time: the first token `seen`, the last `limit`."""
    kv_heads, size, width = keys.shape[1], keys.shape[2], peak.shape[0]
    scores = np.empty((SPAN * BLOCK_SIZE, width + PADDING), np.float32)
    held = np.empty((BLOCK_SIZE, size + PADDING), np.float32)
    ones = np.full(max(BLOCK_SIZE, width), one, np.float32)
    memory, by_query = keys.reshape(keys.size), transpose(scores)
    for start in range(0, limit, SPAN * BLOCK_SIZE):
        count = min(SPAN * BLOCK_SIZE, limit - start)
        for b in range(0, count, BLOCK_SIZE):
            place = np.int64(table[(start + b) // BLOCK_SIZE]) * BLOCK_SIZE
            block = Part(memory, (place * kv_heads + kv) * size, kv_heads * size, 1)
            product(block, whole(queries), size, ones, zero, below(whole(scores), b, 0), BLOCK, width, FULL)
        _online_softmax(scores, count, seen - start, group, peak, total, read)
        for b in range(0, count, BLOCK_SIZE):
            place = np.int64(table[(start + b) // BLOCK_SIZE]) * BLOCK_SIZE
            many = min(BLOCK, count - b)
            for t in range(many):
                copy(values[place + t, kv], held[t, :size])
            product(below(by_query, 0, b), whole(held), many, ones, one, whole(read), width, size, FULL)
