"""Attention of whole tiles of query rows, which `paged_attention` is for 128 new tokens of each sequence and more.

Scores have queries on partitions, where a row's maximum and sum lie along the free axis; the product with the values
wants keys there. The DMA engines turn the weights, as in AWS's attention_cte, which leaves TensorE to products. All
scores of a section of keys are there before the first exponential, so that its sums over values add up in PSUM under
one maximum, 512 queries wide.
"""

import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import TILE, Bank, identity, make_banks, sbuf
from .paged_attention_chunk import SCALE, SIZE
from .paged_attention_decode import tokens_held
from .paged_attention_plan import (
    AHEAD,
    SECTION,
    WIDE,
    Part,
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
from .paged_attention_turns import (
    Shared,
    load_keys,
    load_queries,
    new_lines,
    turn_keys,
    turn_step,
    turn_waiting,
    turn_weights,
)
from .paged_gather import BLOCK, add_addresses, gather_lines, make_pages, rows_of_chunk

WAIT = 4
"""Steps from a unit's last scores until its weights have been turned."""
EARLY = 12
"""Steps before which queries and values are read."""
AT_ONCE = 4
"""Banks of weights that TensorE turns a step, where it does."""
COME_IN, EACH = 6, 1
"""Step before which the first keys of the cache are there, and steps from one chunk to the next."""
PAIRS = 256
"""Keys whose values one address a partition brings, two by two."""


def attend_many(
    q: nl.ndarray, k: nl.ndarray, v: nl.ndarray, k_cache: nl.ndarray, v_cache: nl.ndarray, table: nl.ndarray,
    start: nl.ndarray, o: nl.ndarray, first: int, own: int, by_dma: bool,
) -> None:  # fmt: skip
    """Heads [first, first + own) of `paged_attention` into o; arguments as there, new tokens a multiple of 128.

    by_dma: the DMA engines turn what has to be turned, else TensorE.
    """
    f32, share, tokens = nl.float32, q.shape[2] // k.shape[2], q.shape[1]
    banks = make_banks().tiles
    row = sbuf(f32, (TILE, 1))
    nisa.iota(dst=row, pattern=[[0, 1]], channel_multiplier=1)
    pages, value_pages = make_pages(table, WIDE * TILE // BLOCK), make_pages(table, PAIRS // BLOCK)
    shared = Shared(
        psum=Bank(tiles=banks[2:]), sums=[banks[0], banks[1]], row=row, pages=pages, value_pages=value_pages,
        by_dma=by_dma, made=[],
    )  # fmt: skip
    most = SECTION // (SIZE * 2 * WIDE * (4 if q.dtype == f32 else 2))
    units: list = []
    sections: list = []
    for b in range(q.shape[0]):
        for head in range(first // share, (first + own - 1) // share + 1):
            spans = make_spans(b, head, tokens, pages, value_pages)
            groups: list = []
            for query_head in range(max(first, head * share), min(first + own, (head + 1) * share)):
                add_groups(groups, b, query_head, tokens)
            add_units(units, sections, groups, spans, most)
    scores, products = score_steps(units), product_steps(units)
    # What is awaited for longest first: addresses, then what the first scores are made of.
    add_addresses(pages, table, shared.psum)
    load_queries(units[0].group, q, shared)
    load_keys(sections[0][0:1], k, k_cache, shared)
    shared.eye = identity(q.dtype)
    shared.held = tokens_held(start, shared.psum)
    add_addresses(value_pages, table, shared.psum)
    for n in range(min(AHEAD, len(units))):
        load_queries(units[n].group, q, shared)
    load_keys(sections[0], k, k_cache, shared)
    turn_step(scores[0], shared)
    loaded, done = 1, 0
    finished: list = []
    # Products of a unit follow while the next one's scores are made: each engine finds work where it would wait.
    turn = 0
    while done < len(products):
        if turn < len(scores):
            unit = scores[turn].unit
            if unit.is_last and unit.section + 1 == loaded and loaded < len(sections):
                load_keys(sections[loaded], k, k_cache, shared)
                loaded = loaded + 1
            for at in range(turn, min(turn + EARLY, len(scores))):
                load_queries(scores[at].unit.group, q, shared)
            if turn + 1 < len(scores):
                turn_step(scores[turn + 1], shared)
                _turn_ahead(scores[turn + 1], turn + 1, shared)
            _score(scores[turn], shared)
            unit.steps = unit.steps - 1
            if unit.steps == 0:
                unit.scored = turn
            if scores[turn].is_last:
                _weigh(unit, scores[turn].tile, turn, shared)
                shared.is_weighing = True
                unit.made = len(shared.made)
        turn_waiting(turn - 1, AT_ONCE, shared)
        adding = finished
        finished = []
        if done < len(products):
            unit = products[done].unit
            if shared.is_weighing:
                # One at a time, and after the first weights, which have the DMA engines first.
                _load_values(products[done : done + EARLY], 1, v, v_cache, shared)
            if unit.scored >= 0 and unit.scored + WAIT <= turn and unit.made <= shared.turned:
                _load_values(products[done : done + 1], WIDE, v, v_cache, shared)
                if products[done].is_last:
                    _find_totals(unit)
                _multiply(products[done], shared)
                if products[done].is_last:
                    _take_out(unit, turn >= len(scores), shared)
                    finished.append(unit)
                done = done + 1
        for n in range(len(adding)):
            _add_up(adding[n], o, shared)
        turn = turn + 1
    for n in range(len(finished)):
        _add_up(finished[n], o, shared)


def _turn_ahead(step: Scores, turn: int, shared: Shared) -> None:
    """k^T of the first chunks as they come in, while there are scores of new tokens only."""
    spans = step.unit.spans
    if step.end == 1 and len(spans) > 1 and turn >= COME_IN and (turn - COME_IN) % EACH == 0:
        number = 1 + (turn - COME_IN) // EACH
        if number < len(spans) and spans[number].chunk >= 0 and not spans[number].is_by_line:
            turn_keys(spans[number], shared)


def _load_values(steps: list, most: int, v: nl.ndarray, v_cache: nl.ndarray, shared: Shared) -> None:
    """In the tiles of the weights; of the first `most` spans of the steps that have not been read."""
    for n in range(len(steps)):
        for p in range(len(steps[n].parts)):
            for at in range(len(steps[n].parts[p].spans)):
                span = steps[n].parts[p].spans[at]
                if not span.has_values and most > 0:
                    most = most - 1
                    _load_span_values(span, v, v_cache, shared)


def _load_span_values(span: Span, v: nl.ndarray, v_cache: nl.ndarray, shared: Shared) -> None:
    pages = shared.value_pages
    lines = pages.lines
    span.has_values = True
    span.values = sbuf(v.dtype, (TILE if span.whole > 0 else span.rest, span.tiles, SIZE))
    if span.chunk < 0:
        nisa.dma_copy(dst=span.values, src=new_lines(v, span))
    else:
        for c in range(span.tiles // lines):
            chunk = span.chunk * (shared.pages.blocks // pages.blocks) + c
            place = span.values[0 : rows_of_chunk(pages, chunk), c * lines : (c + 1) * lines]
            gather_lines(place, v_cache, pages, span.b, chunk, span.head, 0)


def _seen(span: Span, tile: Tile) -> int:
    """Keys of a span up to the last that any row of the tile sees."""
    return span.size if span.chunk >= 0 else min(span.size, tile.first + TILE - span.start)


def _seen_of_part(part: Part, tile: Tile) -> int:
    size = 0
    for n in range(len(part.spans)):
        size = size + _seen(part.spans[n], tile)
    return size


def _score(step: Scores, shared: Shared) -> None:
    """Masked scores, and their maxima."""
    unit, tile = step.unit, step.unit.group.tiles[step.tile]
    if step.first == 0:
        tile.highest = sbuf(nl.float32, (TILE, len(unit.spans)))
        tile.scores = []
        tile.has_scores = []
        for _ in range(len(unit.parts)):
            tile.scores.append(tile.highest)
            tile.has_scores.append(False)
    banks: list = []
    for n in range(step.first, step.end):
        banks.append(shared.psum.take()[:, 0 : _seen(unit.spans[n], tile)])
    for half in range(2):
        for n in range(step.first, step.end):
            # [d, i] x [d, j] -> [i, j]
            bank, at = banks[n - step.first], step.tile * TILE
            nisa.nc_matmul(
                dst=bank, stationary=unit.group.turned[:, :, half : half + 1, at : at + TILE],
                moving=unit.spans[n].turned[:, :, half : half + 1, 0 : bank.shape[1]], accumulate=half > 0,
            )  # fmt: skip
    for p in range(len(unit.parts)):
        begin = 0
        for n in range(len(unit.parts[p].spans)):
            number = unit.parts[p].at + n
            if step.first <= number and number < step.end:
                if not tile.has_scores[p]:
                    tile.has_scores[p] = True
                    tile.scores[p] = sbuf(nl.float32, (TILE, _seen_of_part(unit.parts[p], tile)))
                bank, span = banks[number - step.first], unit.spans[number]
                limit = tile.limit if span.chunk < 0 else shared.held[:, span.b : span.b + 1]
                nisa.range_select(
                    dst=tile.scores[p][:, begin : begin + bank.shape[1]], on_true_tile=bank, comp_op0=nl.less,
                    comp_op1=nl.less, bound0=limit, bound1=limit, reduce_cmd=nisa.reduce_cmd.reset_reduce,
                    reduce_res=tile.highest[:, number : number + 1], reduce_op=nl.maximum, range_start=span.start,
                )  # fmt: skip
            begin = begin + unit.parts[p].spans[n].size


def _weigh(unit: Unit, number: int, turn: int, shared: Shared) -> None:
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
    unit.sums.append(sbuf(f32, (TILE, unit.columns)))
    tile.top = top
    for p in range(len(unit.parts)):
        _weigh_part(unit, p, number, bias, turn, shared)


def _weigh_part(unit: Unit, p: int, number: int, bias: nl.ndarray, turn: int, shared: Shared) -> None:
    part, scores, dt, at = unit.parts[p], unit.group.tiles[number].scores[p], shared.eye.dtype, number * TILE
    size = scores.shape[1]
    if not part.is_begun:
        part.is_begun = True
        part.turned = sbuf(dt, (TILE if part.whole > 0 else part.rest, 1, part.tiles, len(unit.group.tiles) * TILE))
    weights, sums, column = sbuf(dt, (TILE, size)), unit.sums[number], part.column
    lines = shared.value_pages.lines if part.spans[0].chunk >= 0 else 1
    whole = min(part.whole, size // TILE)
    if whole > 0:
        _weigh_tiles(weights, scores, 0, whole // lines, lines, TILE, bias, sums[:, column : column + 1])
        column = column + 1
    if part.rest > 0:
        _weigh_tiles(weights, scores, part.whole * TILE, 1, lines, part.rest, bias, sums[:, column : column + 1])
    turn_weights(part, weights, at, turn, shared)


def _weigh_tiles(
    weights: nl.ndarray, scores: nl.ndarray, first: int, chunks: int, lines: int, rows: int, bias: nl.ndarray,
    total: nl.ndarray,
) -> None:  # fmt: skip
    """Of `chunks` times `rows * lines` keys from column `first` on: key n of row p is p * lines + n of its chunk."""
    size = weights.shape[1]
    source = [[size, TILE], [lines * rows, chunks], [1, lines], [lines, rows]]
    nisa.activation(
        dst=weights[:, first : first + chunks * lines * rows], op=nl.exp, data=scores.ap(pattern=source, offset=first),
        bias=bias, scale=SCALE, reduce_op=nl.add, reduce_res=total, reduce_cmd=nisa.reduce_cmd.reset_reduce,
    )  # fmt: skip


def _multiply(step: Products, shared: Shared) -> None:
    """(p v)^T, added up over the section."""
    group = step.unit.group
    count = len(group.tiles) * TILE
    if step.is_first:
        _change_sums(shared)
    for n in range(len(step.tiles)):
        part, tile = step.parts[n], step.tiles[n]
        span, line = part.spans[tile // part.spans[0].tiles], tile % part.spans[0].tiles
        rows = TILE if line < span.whole else span.rest
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


def _change_sums(shared: Shared) -> None:
    """Two banks of the rotation for the next sums; those of the last ones, still to be read, are its last in turn."""
    psum, old = shared.psum, shared.sums
    shared.sums = []
    for half in range(2):
        place = psum.turn % len(psum.tiles)
        shared.sums.append(psum.take())
        tiles = list(psum.tiles)
        tiles[place] = old[half]
        psum.tiles = tuple(tiles)


def _take_out(unit: Unit, is_idle: bool, shared: Shared) -> None:
    """The sums from PSUM to SBUF; where nothing follows, ScalarE takes half, and tiles of queries come one by one."""
    count = len(unit.group.tiles) * TILE
    unit.halves = [sbuf(nl.float32, (TILE, count)), sbuf(nl.float32, (TILE, count))]
    wide, engine = (TILE, nisa.engine.scalar) if is_idle else (count, nisa.engine.vector)
    for at in range(0, count, wide):
        for half in range(2):
            nisa.tensor_copy(
                dst=unit.halves[half][:, at : at + wide], src=shared.sums[half][:, at : at + wide],
                engine=nisa.engine.vector if half == 0 else engine,
            )  # fmt: skip


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
