"""Attention of whole tiles of query rows, which `paged_attention` is for 128 new tokens of each sequence and more.

Scores have queries on partitions, where a row's maximum and sum lie along the free axis; the product with the values
wants keys there. The DMA engines turn the weights, as in AWS's attention_cte, which leaves TensorE to products. All
scores of a section of keys are there before the first exponential, so that its sums over values add up in PSUM under
one maximum, 512 queries wide.
"""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import TILE, Bank, identity, make_banks, sbuf, turn_into
from .paged_attention_chunk import SCALE, SIZE
from .paged_attention_decode import tokens_held
from .paged_attention_plan import (
    SECTION,
    WIDE,
    Group,
    Products,
    Scores,
    Span,
    Tile,
    Unit,
    add_groups,
    add_units,
    make_spans,
    product_steps,
    score_steps,
)
from .paged_gather import BLOCK, Pages, find_pages, gather_lines, rows_of_chunk

WAIT = 4
"""Steps from a unit's last scores until its weights have been turned."""
EARLY = 12
"""Steps before which queries and values are read."""


@dataclass
class Shared(nl.NKIObject):
    """What all have in common.

    Attributes:
        eye: the identity, of the operands' type. row: fp32 [128, 1], its number. held: fp32 [128, B].
        psum: banks in rotation. sums: two more. pages: of keys, in chunks of 512; value_pages: in chunks of 128, a
            token a partition.
    """

    eye: nl.ndarray
    row: nl.ndarray
    held: nl.ndarray
    psum: Bank
    sums: list
    pages: Pages
    value_pages: Pages


def attend_many(
    q: nl.ndarray, k: nl.ndarray, v: nl.ndarray, k_cache: nl.ndarray, v_cache: nl.ndarray, table: nl.ndarray,
    start: nl.ndarray, o: nl.ndarray, first: int, own: int,
) -> None:  # fmt: skip
    """Heads [first, first + own) of `paged_attention` into o; arguments as there, new tokens a multiple of 128."""
    psum = make_banks()
    sums = [psum.tiles[0], psum.tiles[1]]
    psum = Bank(tiles=psum.tiles[2:])
    pages = find_pages(table, WIDE * TILE // BLOCK, psum)
    eye, row, held = identity(q.dtype), sbuf(nl.float32, (TILE, 1)), tokens_held(start, psum)
    nisa.iota(dst=row, pattern=[[0, 1]], channel_multiplier=1)
    value_pages = find_pages(table, TILE // BLOCK, psum)
    shared = Shared(eye=eye, row=row, held=held, psum=psum, sums=sums, pages=pages, value_pages=value_pages)
    share = q.shape[2] // k.shape[2]
    most = SECTION // (SIZE * 2 * WIDE * (4 if q.dtype == nl.float32 else 2))
    units: list = []
    sections: list = []
    for b in range(q.shape[0]):
        for head in range(first // share, (first + own - 1) // share + 1):
            groups: list = []
            for query_head in range(max(first, head * share), min(first + own, (head + 1) * share)):
                add_groups(groups, b, query_head, q.shape[1])
            add_units(units, sections, groups, make_spans(b, head, q.shape[1], pages), most)
    scores, products = score_steps(units), product_steps(units)
    _load_queries(units[0].group, q, shared)
    _load_keys(sections[0], k, k_cache, shared)
    _turn_step(scores[0], shared)
    loaded, done = 1, 0
    finished: list = []
    # Products of a unit follow while the next one's scores are made: each engine finds work where it would wait.
    for turn in range(len(scores) + len(products) + WAIT):
        if turn < len(scores):
            unit = scores[turn].unit
            if unit.is_last and unit.section + 1 == loaded and loaded < len(sections):
                _load_keys(sections[loaded], k, k_cache, shared)
                loaded = loaded + 1
            for at in range(turn, min(turn + EARLY, len(scores))):
                _load_queries(scores[at].unit.group, q, shared)
            if turn + 1 < len(scores):
                _turn_step(scores[turn + 1], shared)
            _score(scores[turn], shared)
            unit.steps = unit.steps - 1
            if unit.steps == 0:
                unit.scored = turn
            if scores[turn].is_last:
                _weigh(unit, scores[turn].tile, shared)
        adding = finished
        finished = []
        if done < len(products):
            unit = products[done].unit
            if unit.scored >= 0:
                for at in range(done, min(done + EARLY, len(products))):
                    _load_values(products[at], v, v_cache, shared)
            if unit.scored >= 0 and unit.scored + WAIT <= turn:
                if products[done].is_last:
                    _find_totals(unit)
                _multiply(products[done], shared)
                if products[done].is_last:
                    _take_out(unit, turn >= len(scores), shared)
                    finished.append(unit)
                done = done + 1
        for n in range(len(adding)):
            _add_up(adding[n], o, shared)
    for n in range(len(finished)):
        _add_up(finished[n], o, shared)


def _load_queries(group: Group, q: nl.ndarray, shared: Shared) -> None:
    """Turned on their way from HBM, if they have not been read."""
    if group.is_loaded:
        return
    group.is_loaded = True
    tokens, heads, f32, count = q.shape[1], q.shape[2], nl.float32, len(group.tiles) * TILE
    group.turned = sbuf(q.dtype, (TILE, 1, 2, count))
    source = q.ap(
        pattern=[[heads * SIZE, count], [1, 1], [TILE, 2], [1, TILE]],
        offset=((group.b * tokens + group.first) * heads + group.head) * SIZE,
    )
    nisa.dma_transpose(dst=group.turned, src=source)
    for n in range(len(group.tiles)):
        group.tiles[n].limit = sbuf(f32, (TILE, 1))
        nisa.tensor_scalar(
            dst=group.tiles[n].limit, data=shared.row, op0=nl.add, operand0=float(group.tiles[n].first + 1),
            engine=nisa.engine.vector,
        )  # fmt: skip


def _load_keys(spans: list, k: nl.ndarray, k_cache: nl.ndarray, shared: Shared) -> None:
    """A run of tokens a partition: what each address brings is long."""
    for n in range(len(spans)):
        span = spans[n]
        span.raw = sbuf(k.dtype, (span.rows, span.lines, SIZE))
        if span.chunk < 0:
            nisa.dma_copy(dst=span.raw, src=_new_lines(k, span))
        else:
            gather_lines(span.raw, k_cache, shared.pages, span.b, span.chunk, span.head, 0)


def _load_values(step: Products, v: nl.ndarray, v_cache: nl.ndarray, shared: Shared) -> None:
    """A token a partition, as turned weights have their keys; of a step's spans that have not been read."""
    pages = shared.value_pages
    for p in range(len(step.parts)):
        for n in range(len(step.parts[p].spans)):
            span = step.parts[p].spans[n]
            tiles = (span.size + TILE - 1) // TILE
            if not span.has_values:
                span.has_values = True
                span.values = sbuf(v.dtype, (min(TILE, span.size), tiles, SIZE))
                if span.chunk < 0:
                    nisa.dma_copy(dst=span.values, src=_new_lines(v, span))
                else:
                    for t in range(tiles):
                        chunk = (span.start + t * TILE) // (pages.blocks * BLOCK)
                        rows = rows_of_chunk(pages, chunk)
                        gather_lines(span.values[0:rows, t : t + 1], v_cache, pages, span.b, chunk, span.head, 0)


def _new_lines(x: nl.ndarray, span: Span) -> nl.ndarray:
    """New tokens of a head of x [B, N, HK, 256] as [128, lines, 256]."""
    row = x.shape[2] * SIZE
    offset = (span.b * x.shape[1] + span.start) * row + span.head * SIZE
    return x.ap(pattern=[[row, TILE], [TILE * row, span.lines], [1, SIZE]], offset=offset)


def _turn_step(step: Scores, shared: Shared) -> None:
    """k^T, in order of position, of a step's spans where it has not been made."""
    for at in range(step.first, step.end):
        span = step.unit.spans[at]
        if not span.is_turned:
            span.is_turned = True
            rows, lines, size = span.rows, span.lines, span.size
            span.turned = sbuf(span.raw.dtype, (TILE, 2, size))
            for half in range(2):
                bank = shared.psum.take()[:, 0:size]
                for n in range(lines):
                    data = span.raw[:, n : n + 1, half * TILE : (half + 1) * TILE].reshape((rows, TILE))
                    turn_into(bank[:, n * rows : (n + 1) * rows], data, shared.eye)
                ordered = [[2 * size, TILE], [span.along, lines], [span.across, rows]]
                place = span.turned.ap(pattern=ordered, offset=half * size)
                nisa.tensor_copy(dst=place, src=bank, engine=nisa.engine.scalar)


def _seen(span: Span, tile: Tile) -> int:
    """Keys of a span up to the last that any row of the tile sees."""
    return span.size if span.chunk >= 0 else min(span.size, tile.first + TILE - span.start)


def _score(step: Scores, shared: Shared) -> None:
    """Masked scores, and their maxima."""
    unit, tile = step.unit, step.unit.group.tiles[step.tile]
    if step.first == 0:
        tile.highest = sbuf(nl.float32, (TILE, len(unit.spans)))
        tile.scores = []
        for p in range(len(unit.parts)):
            size = 0
            for n in range(len(unit.parts[p].spans)):
                size = size + _seen(unit.parts[p].spans[n], tile)
            tile.scores.append(sbuf(nl.float32, (TILE, size)))
    banks: list = []
    for n in range(step.first, step.end):
        banks.append(shared.psum.take()[:, 0 : _seen(unit.spans[n], tile)])
    for half in range(2):
        for n in range(step.first, step.end):
            # [d, i] x [d, j] -> [i, j]
            bank, at = banks[n - step.first], step.tile * TILE
            nisa.nc_matmul(
                dst=bank, stationary=unit.group.turned[:, :, half : half + 1, at : at + TILE],
                moving=unit.spans[n].turned[:, half : half + 1, 0 : bank.shape[1]], accumulate=half > 0,
            )  # fmt: skip
    for p in range(len(unit.parts)):
        begin = 0
        for n in range(len(unit.parts[p].spans)):
            number = unit.parts[p].at + n
            if step.first <= number and number < step.end:
                bank, span = banks[number - step.first], unit.spans[number]
                limit = tile.limit if span.chunk < 0 else shared.held[:, span.b : span.b + 1]
                nisa.range_select(
                    dst=tile.scores[p][:, begin : begin + bank.shape[1]], on_true_tile=bank, comp_op0=nl.less,
                    comp_op1=nl.less, bound0=limit, bound1=limit, reduce_cmd=nisa.reduce_cmd.reset_reduce,
                    reduce_res=tile.highest[:, number : number + 1], reduce_op=nl.maximum, range_start=span.start,
                )  # fmt: skip
            begin = begin + unit.parts[p].spans[n].size


def _weigh(unit: Unit, number: int, shared: Shared) -> None:
    """p = e^((s - m) / 16) of a tile whose scores are all there."""
    tile, f32 = unit.group.tiles[number], nl.float32
    top, bias, fade = sbuf(f32, (TILE, 1)), sbuf(f32, (TILE, 1)), sbuf(f32, (TILE, 1))
    nisa.tensor_reduce(dst=top, op=nl.maximum, data=tile.highest, axis=1)
    if unit.number > 0:
        nisa.tensor_tensor(dst=top, data1=top, data2=tile.top, op=nl.maximum, engine=nisa.engine.vector)
    nisa.tensor_scalar(dst=bias, data=top, op0=nl.multiply, operand0=-SCALE, engine=nisa.engine.vector)
    if unit.number > 0:
        nisa.activation(dst=fade, op=nl.exp, data=tile.top, bias=bias, scale=SCALE)
    unit.fades.append(fade)
    unit.sums.append(sbuf(f32, (TILE, len(unit.parts))))
    tile.top = top
    for p in range(len(unit.parts)):
        _weigh_part(unit, p, number, bias, shared)


def _weigh_part(unit: Unit, p: int, number: int, bias: nl.ndarray, shared: Shared) -> None:
    """The DMA engines turn them."""
    part, scores, dt, at = unit.parts[p], unit.group.tiles[number].scores[p], shared.eye.dtype, number * TILE
    size = scores.shape[1]
    if not part.is_begun:
        part.is_begun = True
        part.turned = sbuf(dt, (TILE, 1, part.tiles, len(unit.group.tiles) * TILE))
    weights = sbuf(dt, (TILE, size))
    nisa.activation(
        dst=weights, op=nl.exp, data=scores, bias=bias, scale=SCALE, reduce_op=nl.add,
        reduce_res=unit.sums[number][:, p : p + 1], reduce_cmd=nisa.reduce_cmd.reset_reduce,
    )  # fmt: skip
    whole, rest = size // TILE, size % TILE
    if whole > 0:
        source = [[size, TILE], [1, 1], [TILE, whole], [1, TILE]]
        nisa.dma_transpose(dst=part.turned[:, :, 0:whole, at : at + TILE], src=weights.ap(pattern=source))
    if rest > 0:
        source = [[size, TILE], [1, 1], [TILE, 1], [1, rest]]
        nisa.dma_transpose(
            dst=part.turned[0:rest, :, whole : whole + 1, at : at + TILE],
            src=weights.ap(pattern=source, offset=whole * TILE),
        )


def _multiply(step: Products, shared: Shared) -> None:
    """(p v)^T, added up over the section."""
    group = step.unit.group
    count = len(group.tiles) * TILE
    for n in range(len(step.tiles)):
        part, tile = step.parts[n], step.tiles[n]
        whole = (part.spans[0].size + TILE - 1) // TILE
        span, line = part.spans[tile // whole], tile % whole
        rows = min(TILE, span.size - line * TILE)
        begin = max(0, span.start + line * TILE - group.first) if span.chunk < 0 else 0
        for half in range(2):
            # [j, v] x [j, i] -> [v, i]
            nisa.nc_matmul(
                dst=shared.sums[half][:, begin:count],
                stationary=span.values[0:rows, line : line + 1, half * TILE : (half + 1) * TILE],
                moving=part.turned[0:rows, :, tile : tile + 1, begin:count], accumulate=not step.is_first or n > 0,
            )  # fmt: skip


def _find_totals(unit: Unit) -> None:
    """l <- fade l + sum(p), and its reciprocal after the last section."""
    group, f32 = unit.group, nl.float32
    group.units = group.units - 1
    unit.is_done = group.units == 0
    for n in range(len(group.tiles)):
        tile, total = group.tiles[n], sbuf(f32, (TILE, 1))
        nisa.tensor_reduce(dst=total, op=nl.add, data=unit.sums[n], axis=1)
        if unit.number > 0:
            nisa.scalar_tensor_tensor(
                dst=total, data=tile.total, op0=nl.multiply, operand0=unit.fades[n], op1=nl.add, operand1=total
            )
        tile.total = total
        if unit.is_done:
            tile.inverse = sbuf(f32, (TILE, 1))
            nisa.reciprocal(dst=tile.inverse, data=total)


def _take_out(unit: Unit, is_idle: bool, shared: Shared) -> None:
    """The sums from PSUM to SBUF. ScalarE takes half if it has no exponentials to make any more."""
    count = len(unit.group.tiles) * TILE
    engine = nisa.engine.scalar if is_idle else nisa.engine.vector
    unit.halves = [sbuf(nl.float32, (TILE, count)), sbuf(nl.float32, (TILE, count))]
    nisa.tensor_copy(dst=unit.halves[0], src=shared.sums[0][:, 0:count], engine=nisa.engine.vector)
    nisa.tensor_copy(dst=unit.halves[1], src=shared.sums[1][:, 0:count], engine=engine)


def _add_up(unit: Unit, o: nl.ndarray, shared: Shared) -> None:
    """o <- fade o + p v; after the last section o / l, to HBM."""
    group, f32, heads = unit.group, nl.float32, o.shape[2]
    for n in range(len(group.tiles)):
        tile, product = group.tiles[n], shared.psum.take()[:, 0:SIZE]
        for half in range(2):
            nisa.nc_transpose(
                dst=product[:, half * TILE : (half + 1) * TILE], data=unit.halves[half][:, n * TILE : (n + 1) * TILE]
            )
        if unit.number > 0:
            out = sbuf(f32, (TILE, SIZE))
            nisa.scalar_tensor_tensor(
                dst=out, data=tile.out, op0=nl.multiply, operand0=unit.fades[n], op1=nl.add, operand1=product
            )
            product = out
        elif not unit.is_done:
            out = sbuf(f32, (TILE, SIZE))
            nisa.tensor_copy(dst=out, src=product, engine=nisa.engine.vector)
            product = out
        tile.out = product
        if unit.is_done:
            out = sbuf(o.dtype, (TILE, SIZE))
            nisa.tensor_scalar(dst=out, data=product, op0=nl.multiply, operand0=tile.inverse, engine=nisa.engine.vector)
            offset = ((group.b * o.shape[1] + tile.first) * heads + group.head) * SIZE
            nisa.dma_copy(dst=o.ap(pattern=[[heads * SIZE, TILE], [1, SIZE]], offset=offset), src=out)
