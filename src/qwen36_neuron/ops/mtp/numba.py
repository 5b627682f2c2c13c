"""All drafts of a step in one call: the multi-token-prediction layer over what it has not seen, then over its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from ...config import BLOCK_SIZE
from ..attention.numba_pages import Pages, put
from ..attention.numba_verify import attention_verify
from ..moe.numba import Mixture
from ..moe.numba_few import add_mixture
from ..numba.drafts import VerifyRows
from ..numba.held import Table, take_row
from ..numba.panels import Packed
from ..numba.projections import Norm, norm_project_few, norm_swiglu_few, project_add_few
from ..numba.scalar import Array, compiled, one
from ..numba.vectors import copy, norm_row, norm_rows, rotate_row

BEGIN = 1
"""The first position that has an entry: the layer's input is of the hidden state before it."""


class DenseWeights(NamedTuple):
    """Of a feed-forward block, gates before ups."""

    gate_up: Packed
    down: Packed


class DraftWeights(NamedTuple):
    """The layer's weights.

    Attributes:
        embedding: [vocabulary, hidden].
        fc: of the embedding and the hidden state, in this order.
        query_norm, key_norm: of heads.
        pages: the layer's own keys and values.
    """

    embedding: Table
    norm_embedding: Norm
    norm_hidden: Norm
    fc: Packed
    input_norm: Norm
    in_proj: Packed
    query_norm: Norm
    key_norm: Norm
    pages: Pages
    out_proj: Packed
    post_norm: Norm
    block: DenseWeights | Mixture
    norm: Norm
    head: Packed


class Owed(NamedTuple):
    """What the layer has not seen of each row: the positions of a row follow one another, and those of rows too.

    Attributes:
        hidden: fp32 [positions, hidden], the hidden state before each position.
        tokens: int64 [positions], the token at each.
        first: int64 [rows + 1], the positions of a row are first[row] .. first[row + 1] of all.
        starts: int64 [rows], the first position of each row, in its sequence.
        origins: int64 [rows], the first position of a row's cosines and sines.
        tables: int32 [rows, n], the blocks of each sequence, those that drafts will need among them.
    """

    hidden: Array
    tokens: Array
    first: Array
    starts: Array
    origins: Array
    tables: Array


@compiled(inline=False)
def make_drafts(layer: DraftWeights, cos: Array, sin: Array, owed: Owed, counts: Array, drafts: Array) -> None:
    """Greedy drafts that follow each row's last token; keys and values of all positions but the last drafts' are kept.

    Args:
        cos, sin: fp32 [rows, positions or more, dim / 2], by position from each row's origin on.
        counts: int64 [rows], drafts wanted, at least one, and most first.
        drafts: int64 [rows, most], the result; what is not wanted stays as it is.
    """
    rows = counts.shape[0]
    hidden = np.empty((rows, owed.hidden.shape[1]), np.float32)
    through = _run_layer(layer, cos, sin, owed)
    for row in range(rows):
        copy(through[owed.first[row + 1] - 1], hidden[row])
    tokens, ends = np.empty(rows, np.int64), np.empty(rows, np.int64)
    for row in range(rows):
        ends[row] = owed.starts[row] + owed.first[row + 1] - owed.first[row]
    place = 0
    while True:
        normed = np.empty(hidden.shape, np.float32)
        logits = np.empty((rows, layer.head.outputs), np.float32)
        norm_project_few(hidden, layer.norm, layer.head, normed, logits)
        for row in range(rows):
            tokens[row] = np.argmax(logits[row])
            drafts[row, place] = tokens[row]
        place += 1
        while rows and counts[rows - 1] <= place:
            rows -= 1
        if not rows:
            return
        following = Owed(
            normed[:rows], tokens[:rows], np.arange(rows + 1), ends[:rows], owed.origins[:rows], owed.tables[:rows]
        )
        hidden = _run_layer(layer, cos, sin, following)
        for row in range(rows):
            ends[row] += 1


@compiled(inline=False)
def _run_layer(layer: DraftWeights, cos: Array, sin: Array, owed: Owed) -> Array:
    """The layer's results before its last norm, fp32 [positions, hidden]."""
    positions, size = owed.hidden.shape
    joined, turned, sines = _inputs(layer, cos, sin, owed)
    x, normed = np.zeros((positions, size), np.float32), np.empty((positions, size), np.float32)
    project_add_few(joined, layer.fc, x)

    projected = np.empty((positions, layer.in_proj.outputs), np.float32)
    norm_project_few(x, layer.input_norm, layer.in_proj, normed, projected)
    none = owed.starts
    rows = VerifyRows(
        none, none, none < 0, none, none, owed.first, owed.starts, owed.tables, np.empty((0, 3), np.int64)
    )
    mixed = np.empty((positions, layer.out_proj.data.shape[1]), np.float32)
    norms = layer.query_norm.weight, layer.key_norm.weight, layer.query_norm.eps
    attention_verify(projected, norms[0], norms[1], norms[2], turned, sines, layer.pages, rows, BEGIN, mixed)
    project_add_few(mixed, layer.out_proj, x)

    add_block(layer.block, x, layer.post_norm, normed)
    return x


def add_block(block: DenseWeights | Mixture, x: Array, norm: Norm, normed: Array) -> None:
    """x += the feed-forward block of norm(x), fp32 [positions, hidden]; `normed` is overwritten. In compiled code."""
    raise NotImplementedError


@overload(add_block)
def _add_block(block: Any, x: Any, norm: Any, normed: Any) -> Any:
    """The one that fits the block's type; Numba wants these annotations of all three."""
    return _add_mixture if block.instance_class is Mixture else _add_dense


def _add_dense(block: Any, x: Any, norm: Any, normed: Any) -> Any:
    inner = np.empty((x.shape[0], block.down.data.shape[1]), np.float32)
    norm_swiglu_few(x, norm, block.gate_up, normed, inner)
    project_add_few(inner, block.down, x)


def _add_mixture(block: Any, x: Any, norm: Any, normed: Any) -> Any:
    norm_rows(x, norm.weight, norm.eps, normed)
    add_mixture(block, normed, x)


@compiled(inline=False)
def _inputs(layer: DraftWeights, cos: Array, sin: Array, owed: Owed) -> tuple[Array, Array, Array]:
    """Both inputs of the layer, normed, side by side, [positions, 2 hidden]; cos and sin, [positions, dim / 2]."""
    positions, size = owed.hidden.shape
    joined = np.empty((positions, 2 * size), np.float32)
    turned, sines = np.empty((positions, cos.shape[2]), np.float32), np.empty((positions, cos.shape[2]), np.float32)
    embedded = np.empty(size, np.float32)
    for row in range(owed.starts.shape[0]):
        for at in range(owed.first[row], owed.first[row + 1]):
            before = owed.starts[row] + at - owed.first[row] - 1 - owed.origins[row]
            take_row(layer.embedding, owed.tokens[at], embedded)
            norm_row(embedded, layer.norm_embedding.weight, layer.norm_embedding.eps, one, joined[at, :size])
            norm_row(owed.hidden[at], layer.norm_hidden.weight, layer.norm_hidden.eps, one, joined[at, size:])
            copy(cos[row, before], turned[at])
            copy(sin[row, before], sines[at])
    return joined, turned, sines


@compiled(inline=False)
def write_entries(layer: DraftWeights, for_keys: Packed, cos: Array, sin: Array, owed: Owed) -> None:
    """Keys and values of all positions, and nothing else.

    Args:
        for_keys: the part of `in_proj` that makes keys and values.
    """
    positions, size = owed.hidden.shape
    joined, turned, sines = _inputs(layer, cos, sin, owed)
    x, normed = np.zeros((positions, size), np.float32), np.empty((positions, size), np.float32)
    project_add_few(joined, layer.fc, x)
    kv = np.empty((positions, for_keys.outputs), np.float32)
    norm_project_few(x, layer.input_norm, for_keys, normed, kv)
    pages, room = layer.pages, np.empty(layer.pages.keys.shape[2], np.float32)
    heads, width = pages.keys.shape[1], pages.keys.shape[2]
    for row in range(owed.starts.shape[0]):
        for at in range(owed.first[row], owed.first[row + 1]):
            position = owed.starts[row] + at - owed.first[row]
            place = np.int64(owed.tables[row, position // BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE
            for head in range(heads):
                key_at, value_at = head * width, (heads + head) * width
                norm_row(kv[at, key_at : key_at + width], layer.key_norm.weight, layer.key_norm.eps, one, room)
                rotate_row(room, turned[at], sines[at])
                put(room, pages.key_rates[head], pages.keys[place, head])
                put(kv[at, value_at : value_at + width], pages.value_rates[head], pages.values[place, head])
