"""Many tokens a sequence of gated attention over paged keys and values.

Scores are computed transposed, keys by queries: then keys and values are read as they lie in the cache, the queries of
a task are transposed once for all keys, and the softmax goes along vectors of queries.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from ...config import BLOCK_SIZE
from ..numba.product import COLUMNS, FULL, PADDING, below, product, transpose, whole
from ..numba.rows import gate_row
from ..numba.scalar import Array, compiled, exp, f32, i64, one, zero
from ..numba.vectors import copy, fill, norm_row, rotate_row, scale
from .numba_pages import Pages, part_of, put, take
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
    pages: Pages,
) -> None:
    """Norm and rotate the keys of new tokens, and put them and their values into the cache.

    Args:
        kv: [batch, tokens, 2 * kv_heads * n] fp32, keys first; weight: [n]; cos, sin: [batch, tokens, dim / 2].
        tables: int32 [batch, n], the blocks of each sequence.
        starts, ends: int64 [batch], tokens of each sequence before and after.
        pages: of the layer.
    """
    keys, values = pages.keys, pages.values
    tokens, heads, size = kv.shape[1], keys.shape[1], keys.shape[2]
    for task in prange(kv.shape[0] * tokens):
        row, token = task // tokens, task % tokens
        position = starts[row] + token
        if position < ends[row]:
            place = np.int64(tables[row, position // BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE
            room = np.empty(size, np.float32)
            for h in range(heads):
                key_at, value_at = h * size, (heads + h) * size
                norm_row(kv[row, token, key_at : key_at + size], weight, eps, one, room)
                rotate_row(room, cos[row, token], sin[row, token])
                put(room, pages.key_rates[h], keys[place, h])
                put(kv[row, token, value_at : value_at + size], pages.value_rates[h], values[place, h])


@compiled(inline=False)
def _transpose_queries(
    qg: Array, weight: Array, eps: float, cos: Array, sin: Array, kv: int, group: int, factor: float, out: Array
) -> None:
    """Normed and rotated queries of tokens qg [tokens, ...] times a factor, into the columns of out [n, ...]."""
    size = out.shape[0]
    held = np.empty((16, size), np.float32)
    for first in range(0, qg.shape[0] * group, 16):
        many = min(16, qg.shape[0] * group - first)
        for u in range(many):
            token, g = (first + u) // group, (first + u) % group
            at = (kv * group + g) * size
            norm_row(qg[token, at : at + size], weight, eps, factor, held[u])
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
    pages: Pages,
    out: Array,
) -> None:
    """Causal attention of each row's last tokens to all of its tokens, and the gate.

    A task is a few tokens' queries of one kv head; tasks of early and of late tokens, which see more, take turns.

    Args:
        qg: [batch, tokens, 2 * query_heads * n] fp32: queries, which are normed and rotated here, then gates.
        weight: [n], of the queries' norm; cos, sin: [batch, tokens, dim / 2].
        tables: int32 [batch, n], the blocks of each sequence; ends: int64 [batch], its tokens.
        counts: int64 [batch], how many of the tokens of qg are real: the row's last, padding on the right.
        pages: of the layer, the new tokens' keys and values already stored.
        out: [batch, tokens, query_heads * n], the result; zero on padding.
    """
    keys, values = pages.keys, pages.values
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
            factor = pages.key_scales[kv] / f32(math.sqrt(size))
            _transpose_queries(
                qg[row, first:stop], weight, eps, cos[row, first:stop], sin[row, first:stop], kv, group, factor, queries
            )
            read = np.zeros((width, size + PADDING), np.float32)
            peak, total = np.full(width, LOWEST, np.float32), np.zeros(width, np.float32)
            _attend(queries, kv, group, seen, seen + stop - first - 1, tables[row], keys, values, peak, total, read)
            for c in range((stop - first) * group):
                t, at = first + c // group, (kv * group + c % group) * size
                found, gates = out[row, t, at : at + size], heads * size + at
                scale(pages.value_scales[kv] / total[c], read[c, :size], found)
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
    size, width = keys.shape[2], peak.shape[0]
    scores = np.empty((SPAN * BLOCK_SIZE, width + PADDING), np.float32)
    held, room = np.empty((BLOCK_SIZE, size + PADDING), np.float32), np.empty((BLOCK_SIZE, size), np.float32)
    ones = np.full(max(BLOCK_SIZE, width), one, np.float32)
    by_query = transpose(scores)
    for start in range(0, limit, SPAN * BLOCK_SIZE):
        count = min(SPAN * BLOCK_SIZE, limit - start)
        for b in range(0, count, BLOCK_SIZE):
            place = np.int64(table[(start + b) // BLOCK_SIZE]) * BLOCK_SIZE
            block = part_of(keys, place, kv, BLOCK, room)
            product(block, whole(queries), size, ones, zero, below(whole(scores), b, 0), BLOCK, width, FULL)
        _online_softmax(scores, count, seen - start, group, peak, total, read)
        for b in range(0, count, BLOCK_SIZE):
            place = np.int64(table[(start + b) // BLOCK_SIZE]) * BLOCK_SIZE
            many = min(BLOCK, count - b)
            for t in range(many):
                take(values[place + t, kv], held[t, :size])
            product(below(by_query, 0, b), whole(held), many, ones, one, whole(read), width, size, FULL)
