"""One token a sequence of gated attention over paged keys and values."""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from ...config import BLOCK_SIZE
from ..numba.rows import gate_row
from ..numba.scalar import Array, compiled, exp, f32, one, zero
from ..numba.vectors import add_scaled, dot, norm_row, rotate_row, scale
from .numba_pages import Pages, held, put

LOWEST = f32(-3.0e38)


@compiled(parallel=True)
def attention_step(
    qgkv: Array,
    query_weight: Array,
    key_weight: Array,
    eps: float,
    cos: Array,
    sin: Array,
    pages: Pages,
    tables: Array,
    ends: Array,
    out: Array,
) -> None:
    """Norms, rotary embedding, the new token's keys and values, attention and its gate.

    A block of keys is read once for all query heads that share it, with the running maximum and sum of an online
    softmax.

    Args:
        qgkv: [batch, (2 query_heads + 2 kv_heads) * head_dim] fp32: queries, gates, keys, values.
        query_weight, key_weight: [head_dim], of the norms.
        cos, sin: [batch, dim / 2].
        pages: of the layer. The new token's key and value are written.
        tables: int32 [batch, n], the blocks of each sequence.
        ends: int64 [batch], tokens of each sequence, the new one included.
        out: [batch, query_heads * head_dim], the result.
    """
    keys, values = pages.keys, pages.values
    kv_heads, size = keys.shape[1], keys.shape[2]
    heads = out.shape[1] // size
    group = heads // kv_heads
    for task in prange(qgkv.shape[0] * kv_heads):
        row, kv = task // kv_heads, task % kv_heads
        x, end = qgkv[row], ends[row]
        queries, found = np.empty((group, size), np.float32), np.zeros((group, size), np.float32)
        peak, total = np.full(group, LOWEST, np.float32), np.zeros(group, np.float32)
        scores, room = np.empty((group, BLOCK_SIZE), np.float32), np.empty(size, np.float32)

        place = np.int64(tables[row, (end - 1) // BLOCK_SIZE]) * BLOCK_SIZE + (end - 1) % BLOCK_SIZE
        key_at, value_at = (2 * heads + kv) * size, (2 * heads + kv_heads + kv) * size
        norm_row(x[key_at : key_at + size], key_weight, eps, one, room)
        rotate_row(room, cos[row], sin[row])
        put(room, pages.key_rates[kv], keys[place, kv])
        put(x[value_at : value_at + size], pages.value_rates[kv], values[place, kv])
        for g in range(group):
            at = (kv * group + g) * size
            norm_row(x[at : at + size], query_weight, eps, pages.key_scales[kv] / f32(math.sqrt(size)), queries[g])
            rotate_row(queries[g], cos[row], sin[row])

        for block in range((end + BLOCK_SIZE - 1) // BLOCK_SIZE):
            first = np.int64(tables[row, block]) * BLOCK_SIZE
            count = min(BLOCK_SIZE, end - block * BLOCK_SIZE)
            for t in range(count):
                key = held(keys[first + t, kv], room)
                for g in range(group):
                    scores[g, t] = dot(queries[g], key)
            for g in range(group):
                highest = peak[g]
                for t in range(count):
                    highest = max(highest, scores[g, t])
                fade = exp(peak[g] - highest)
                peak[g] = highest
                added = zero
                for t in range(count):
                    weight = exp(scores[g, t] - highest)
                    scores[g, t] = weight
                    added += weight
                total[g] = total[g] * fade + added
                scale(fade, found[g], found[g])
            for t in range(count):
                value = held(values[first + t, kv], room)
                for g in range(group):
                    add_scaled(scores[g, t], value, found[g])
        for g in range(group):
            at = (kv * group + g) * size
            gate_at = heads * size + at
            scale(pages.value_scales[kv] / total[g], found[g], out[row, at : at + size])
            gate_row(out[row, at : at + size], x[gate_at : gate_at + size])
