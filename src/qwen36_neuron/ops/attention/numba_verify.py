"""A few tokens a sequence of gated attention over paged keys and values, causal among them."""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from ...config import BLOCK_SIZE
from ..numba.drafts import VerifyRows
from ..numba.product import FULL, ROWS, product, whole
from ..numba.rows import gate_row
from ..numba.scalar import Array, compiled, exp, f32, i64, one, zero
from ..numba.vectors import fill, norm_row, rotate_row, scale
from .numba_pages import Pages, held, part_of, put
from .numba_step import LOWEST

Four = tuple[float, float, float, float]


@compiled(parallel=True)
def attention_verify(
    qgkv: Array,
    query_weight: Array,
    key_weight: Array,
    eps: float,
    cos: Array,
    sin: Array,
    pages: Pages,
    rows: VerifyRows,
    begin: int,
    out: Array,
) -> None:
    """Norms, rotary embedding, the new tokens' keys and values, attention and its gate.

    A task is a kv head of a row: a block of keys is read once for all positions and query heads, with the running
    maximum and sum of an online softmax.

    Args:
        qgkv: [positions, (2 query_heads + 2 kv_heads) * head_dim] fp32: queries, gates, keys, values.
        query_weight, key_weight: [head_dim], of the norms.
        cos, sin: [positions, dim / 2].
        pages: of the layer. Keys and values of new tokens are written.
        begin: the first position of a sequence that has a key: 0, or 1 in the draft layer.
        out: [positions, query_heads * head_dim], the result.
    """
    keys, values = pages.keys, pages.values
    kv_heads, size = keys.shape[1], keys.shape[2]
    heads = out.shape[1] // size
    group = heads // kv_heads
    for task in prange(rows.lanes.shape[0] * kv_heads):
        row, kv = task // kv_heads, task % kv_heads
        lead, start, table = rows.first[row], rows.starts[row], rows.tables[row]
        count = rows.first[row + 1] - lead
        tall = (count * group + ROWS - 1) // ROWS * ROWS
        queries, room = np.zeros((tall, size), np.float32), np.empty(size, np.float32)
        for p in range(count):
            x, position = qgkv[lead + p], start + p
            place = np.int64(table[position // BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE
            key_at, value_at = (2 * heads + kv) * size, (2 * heads + kv_heads + kv) * size
            norm_row(x[key_at : key_at + size], key_weight, eps, one, room)
            rotate_row(room, cos[lead + p], sin[lead + p])
            put(room, pages.key_rates[kv], keys[place, kv])
            put(x[value_at : value_at + size], pages.value_rates[kv], values[place, kv])
            for g in range(group):
                at, query = (kv * group + g) * size, queries[p * group + g]
                norm_row(x[at : at + size], query_weight, eps, pages.key_scales[kv] / f32(math.sqrt(size)), query)
                rotate_row(query, cos[lead + p], sin[lead + p])
        found, total = np.zeros((tall, size), np.float32), np.zeros(tall, np.float32)
        _attend(queries, group, begin, start, start + count, table, kv, keys, values, total, found)
        for p in range(count):
            for g in range(group):
                at, query = (kv * group + g) * size, p * group + g
                gate_at = heads * size + at
                scale(pages.value_scales[kv] / total[query], found[query], out[lead + p, at : at + size])
                gate_row(out[lead + p, at : at + size], qgkv[lead + p, gate_at : gate_at + size])


@compiled(inline=False)
def _attend(
    queries: Array,
    group: int,
    begin: int,
    start: int,
    end: int,
    table: Array,
    kv: int,
    keys: Array,
    values: Array,
    total: Array,
    found: Array,
) -> None:
    """Sums of a kv head's values, weighed by softmax numerators, and of these.

    Args:
        queries: [positions * group or more, n], a position's together; start, end: of the positions.
        begin: the first position that has a key.
        total: [queries], found: [queries, n], zero before.
    """
    size, tall = keys.shape[2], queries.shape[0]
    scores, ones = np.zeros((tall, BLOCK_SIZE), np.float32), np.full(tall, one, np.float32)
    peak, block_room = np.full(tall, LOWEST, np.float32), np.empty((BLOCK_SIZE, size), np.float32)
    room, other = np.empty(size, np.float32), np.empty(size, np.float32)
    for block in range((end + BLOCK_SIZE - 1) // BLOCK_SIZE):
        first, before = np.int64(table[block]) * BLOCK_SIZE, block * BLOCK_SIZE
        count = min(BLOCK_SIZE, end - before)
        for t in range(0, count, 2):
            key, following = held(keys[first + t, kv], room), held(keys[first + min(t + 1, count - 1), kv], other)
            _score(queries, key, following, t, scores)
        for q in range((end - start) * group):
            row, seen = scores[q], min(count, start + q // group + 1 - before)
            lead = max(0, begin - before)
            if seen <= lead:
                fill(zero, row)
                continue
            highest = max(peak[q], _largest(row[lead:seen]))
            fade = exp(peak[q] - highest)
            peak[q] = highest
            total[q] = total[q] * fade + _exponentiate(row[lead:seen], highest)
            fill(zero, row[:lead])
            fill(zero, row[seen:])
            if fade != one:
                scale(fade, found[q], found[q])
        part = part_of(values, first, kv, count, block_room)
        product(whole(scores), part, count, ones, one, whole(found), i64(tall), size, FULL)


@compiled()
def _score(queries: Array, key: Array, next_key: Array, at: int, scores: Array) -> None:
    """Products of all queries with two keys, into columns `at` and the one after it."""
    for q in range(0, queries.shape[0], 4):
        left, right = _four_by_two(queries[q : q + 4], key, next_key)
        scores[q, at], scores[q + 1, at], scores[q + 2, at], scores[q + 3, at] = left
        scores[q, at + 1], scores[q + 1, at + 1], scores[q + 2, at + 1], scores[q + 3, at + 1] = right


@compiled()
def _four_by_two(x: Array, w: Array, u: Array) -> tuple[Four, Four]:
    """Dot products of the four rows of x with w and with u: every number loaded is used twice or four times."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zero
    for k in range(w.shape[0]):
        x0, x1, x2, x3 = x[0, k], x[1, k], x[2, k], x[3, k]
        a0 += x0 * w[k]
        a1 += x1 * w[k]
        a2 += x2 * w[k]
        a3 += x3 * w[k]
        b0 += x0 * u[k]
        b1 += x1 * u[k]
        b2 += x2 * u[k]
        b3 += x3 * u[k]
    return (a0, a1, a2, a3), (b0, b1, b2, b3)


@compiled()
def _largest(x: Array) -> float:
    highest = x[0]
    for t in range(x.shape[0]):
        highest = max(highest, x[t])
    return highest


@compiled()
def _exponentiate(x: Array, highest: float) -> float:
    """x = e^(x - highest); their sum."""
    added = zero
    for t in range(x.shape[0]):
        weight = exp(x[t] - highest)
        x[t] = weight
        added += weight
    return added
