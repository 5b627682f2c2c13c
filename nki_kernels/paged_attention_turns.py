"""Queries, keys and weights turned for `attend_many`: by the DMA engines, or by TensorE where those may not.

The first keys of the cache are TensorE's in any case: nothing precedes them.
"""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import TILE, Bank, sbuf, turn_into
from .paged_attention_chunk import SIZE
from .paged_attention_plan import WIDE, Group, Part, Scores, Span
from .paged_gather import Pages, gather_lines

AT_START = 4
"""Chunks of the first section that TensorE turns in any case."""


@dataclass
class Shared(nl.NKIObject):
    """What all have in common.

    Attributes:
        eye: the identity, of the operands' type. row: fp32 [128, 1], its number. held: fp32 [128, B].
        psum: banks in rotation. sums: two more, which change places with them from one group of queries to the next.
        pages: of keys, in chunks of 512; value_pages: in chunks of 256, two tokens a partition.
        is_weighing: there are weights. by_dma: the DMA engines turn.
        made: weights that TensorE is to turn, of which `turned` are.
    """

    psum: Bank
    sums: list
    row: nl.ndarray
    pages: Pages
    value_pages: Pages
    by_dma: bool
    made: list
    turned: int = 0
    is_weighing: bool = False
    eye: nl.ndarray = None
    held: nl.ndarray = None


@dataclass
class Weights(nl.NKIObject):
    """Weights of a tile of queries that TensorE turns: `count` tiles of `rows` keys from `tile` of the part on.

    Attributes:
        weights: [i, j], those keys in columns from `first` on. at: their columns in the part's [j, tiles, i].
        turn: when they were made.
    """

    part: Part
    weights: nl.ndarray
    at: int
    turn: int
    tile: int
    count: int
    first: int
    rows: int


def load_queries(group: Group, q: nl.ndarray, shared: Shared) -> None:
    """If they have not been read; turned on their way from HBM."""
    if group.is_loaded:
        return
    group.is_loaded = True
    tokens, heads, f32, count = q.shape[1], q.shape[2], nl.float32, len(group.tiles) * TILE
    offset = ((group.b * tokens + group.first) * heads + group.head) * SIZE
    group.turned = sbuf(q.dtype, (TILE, 1, 2, count))
    if shared.by_dma:
        source = q.ap(pattern=[[heads * SIZE, count], [1, 1], [TILE, 2], [1, TILE]], offset=offset)
        nisa.dma_transpose(dst=group.turned, src=source)
        group.is_turned = True
    else:
        group.raw = sbuf(q.dtype, (TILE, len(group.tiles), SIZE))
        row = heads * SIZE
        source = q.ap(pattern=[[row, TILE], [TILE * row, len(group.tiles)], [1, SIZE]], offset=offset)
        nisa.dma_copy(dst=group.raw, src=source)
    for n in range(len(group.tiles)):
        group.tiles[n].limit = sbuf(f32, (TILE, 1))
        nisa.tensor_scalar(
            dst=group.tiles[n].limit, data=shared.row, op0=nl.add, operand0=float(group.tiles[n].first + 1),
            engine=nisa.engine.vector,
        )  # fmt: skip


def new_lines(x: nl.ndarray, span: Span) -> nl.ndarray:
    """New tokens of a head of x [B, N, HK, 256] as [128, lines, 256], a token a partition."""
    row = x.shape[2] * SIZE
    offset = (span.b * x.shape[1] + span.start) * row + span.head * SIZE
    return x.ap(pattern=[[row, TILE], [TILE * row, span.lines], [1, SIZE]], offset=offset)


def load_keys(spans: list, k: nl.ndarray, k_cache: nl.ndarray, shared: Shared) -> None:
    """Of the cache a run of tokens a partition: what each address brings is long."""
    for n in range(len(spans)):
        span = spans[n]
        if span.has_keys:
            continue
        span.has_keys = True
        span.turned = sbuf(k.dtype, (TILE, 1, 2, span.size))
        if span.chunk < 0 and shared.by_dma:
            row = k.shape[2] * SIZE
            offset = (span.b * k.shape[1] + span.start) * row + span.head * SIZE
            source = k.ap(pattern=[[row, span.size], [1, 1], [TILE, 2], [1, TILE]], offset=offset)
            nisa.dma_transpose(dst=span.turned, src=source)
            span.is_turned = True
        else:
            span.raw = sbuf(k.dtype, (span.rows, span.lines, SIZE))
            if span.chunk < 0:
                nisa.dma_copy(dst=span.raw, src=new_lines(k, span))
            else:
                gather_lines(span.raw, k_cache, shared.pages, span.b, span.chunk, span.head, 0)
    for n in range(len(spans)):
        span = spans[n]
        if shared.by_dma and span.chunk >= 0 and not span.is_by_line and (span.section > 0 or span.chunk >= AT_START):
            span.is_by_line = True
            span.by_line = sbuf(k.dtype, (TILE, span.lines, 2, span.rows))
            source = [[span.lines * SIZE, span.rows], [SIZE, span.lines], [TILE, 2], [1, TILE]]
            nisa.dma_transpose(dst=span.by_line, src=span.raw.ap(pattern=source))


def turn_step(step: Scores, shared: Shared) -> None:
    """q^T and k^T, in order of position, of a step, where they have not been made."""
    group = step.unit.group
    if not group.is_turned:
        group.is_turned = True
        count = len(group.tiles) * TILE
        for half in range(2):
            bank = shared.psum.take()[:, 0:count]
            for n in range(len(group.tiles)):
                data = group.raw[:, n : n + 1, half * TILE : (half + 1) * TILE].reshape((TILE, TILE))
                turn_into(bank[:, n * TILE : (n + 1) * TILE], data, shared.eye)
            nisa.tensor_copy(dst=group.turned[:, :, half : half + 1], src=bank, engine=nisa.engine.scalar)
    for at in range(step.first, step.end):
        span = step.unit.spans[at]
        turn_keys(span, shared)


def turn_keys(span: Span, shared: Shared) -> None:
    """If they have not been. Key n of row p is the span's p * lines + n in a chunk, p + 128 n among new tokens."""
    if span.is_turned:
        return
    span.is_turned = True
    rows, lines, size = span.rows, span.lines, span.size
    along, across = (1, lines) if span.chunk >= 0 else (rows, 1)
    if span.is_by_line:
        source = span.by_line.ap(pattern=[[2 * size, TILE], [rows, 2], [2 * rows, lines], [1, rows]])
        place = span.turned.ap(pattern=[[2 * size, TILE], [size, 2], [along, lines], [across, rows]])
        nisa.tensor_copy(dst=place, src=source, engine=nisa.engine.scalar)
        return
    for half in range(2):
        bank = shared.psum.take()[:, 0:size]
        for n in range(lines):
            data = span.raw[:, n : n + 1, half * TILE : (half + 1) * TILE].reshape((rows, TILE))
            turn_into(bank[:, n * rows : (n + 1) * rows], data, shared.eye)
        place = span.turned.ap(pattern=[[2 * size, TILE], [along, lines], [across, rows]], offset=half * size)
        nisa.tensor_copy(dst=place, src=bank, engine=nisa.engine.scalar)


def turn_weights(part: Part, weights: nl.ndarray, at: int, turn: int, shared: Shared) -> None:
    """[i, j] into columns [at, at + 128) of the part's [j, tiles, i]."""
    whole = min(part.whole, weights.shape[1] // TILE)
    if not shared.by_dma:
        for tile in range(0, whole, WIDE):
            count = min(WIDE, whole - tile)
            _add_made(part, weights, at, turn, tile, count, tile * TILE, TILE, shared)
        if part.rest > 0:
            _add_made(
                part, weights, at, turn, part.whole, part.tiles - part.whole, part.whole * TILE, part.rest, shared
            )  # fmt: skip
        return
    if whole > 0:
        _turn_by_dma(part.turned[:, :, 0:whole, at : at + TILE], weights, 0, TILE)
    if part.rest > 0:
        place = part.turned[0 : part.rest, :, part.whole : part.tiles, at : at + TILE]
        _turn_by_dma(place, weights, part.whole * TILE, part.rest)


def _add_made(
    part: Part, weights: nl.ndarray, at: int, turn: int, tile: int, count: int, first: int, rows: int, shared: Shared
) -> None:
    shared.made.append(
        Weights(part=part, weights=weights, at=at, turn=turn, tile=tile, count=count, first=first, rows=rows)
    )


def _turn_by_dma(place: nl.ndarray, weights: nl.ndarray, first: int, rows: int) -> None:
    """Tiles of `rows` columns of weights from column `first` on into [rows, 1, tiles, 128]."""
    source = [[weights.shape[1], TILE], [1, 1], [rows, place.shape[2]], [1, rows]]
    nisa.dma_transpose(dst=place, src=weights.ap(pattern=source, offset=first))


def turn_waiting(turn: int, most: int, shared: Shared) -> None:
    """By TensorE, up to `most` of those that were made before a turn. VectorE evicts: ScalarE has exponentials."""
    for _ in range(most):
        if shared.turned < len(shared.made) and shared.made[shared.turned].turn < turn:
            made = shared.made[shared.turned]
            shared.turned = shared.turned + 1
            rows, first = made.rows, made.first
            bank = shared.psum.take()[0:rows, 0 : made.count * TILE]
            for n in range(made.count):
                data = made.weights[:, first + n * rows : first + (n + 1) * rows]
                turn_into(bank[:, n * TILE : (n + 1) * TILE], data, shared.eye)
            place = made.part.turned[0:rows, :, made.tile : made.tile + made.count, made.at : made.at + TILE]
            nisa.tensor_copy(dst=place, src=bank, engine=nisa.engine.vector)
