"""What `attend_many` does in which order: keys in spans, sections and parts, queries in groups, work in steps."""

from dataclasses import dataclass

import nki.language as nl

from .delta_rule_tiles import BANK_COLUMNS, TILE
from .paged_gather import BLOCK, Pages, rows_of_chunk

WIDE = BANK_COLUMNS // TILE
"""Tiles of queries whose sums share a bank, and tiles of keys whose scores of one query do."""
SECTION = 32768
"""Bytes a partition of a section's keys and values: 4,096 keys in bfloat16, half of them in float32."""
AHEAD = 3
"""Groups of queries whose scores of new tokens are made while the first keys of the cache come in."""
TOGETHER = 2
"""Spans whose weights one exponential makes: reading the sums out takes ScalarE as long as 200 of them."""


@dataclass
class Span(nl.NKIObject):
    """Up to 512 keys of a key head of sequence b: new tokens, or a chunk of the table.

    Attributes:
        start: position of its first key, among the new tokens or in the cache. chunk: in the table; -1: new tokens.
        rows, lines: of a chunk, key n of row p is the span's p * lines + n.
        tiles, whole, rest: of values: so many, the first of 128 keys, those after of `rest` each. Those of a chunk take
            turns by key: two tokens a partition are an address for both.
        section: of all sections. raw: keys, [rows, lines, 256], where they are not turned on their way from HBM.
        by_line: k^T by key of a row, [d, lines, 2, rows], if the DMA engines turn it. turned: k^T in order,
            [d, 1, 2, size]. values: [128, tiles, 256].
    """

    b: int
    head: int
    start: int
    size: int
    chunk: int
    rows: int
    lines: int
    tiles: int
    whole: int
    rest: int
    section: int = 0
    raw: nl.ndarray = None
    by_line: nl.ndarray = None
    turned: nl.ndarray = None
    values: nl.ndarray = None
    is_by_line: bool = False
    has_keys: bool = False
    is_turned: bool = False
    has_values: bool = False


@dataclass
class Tile(nl.NKIObject):
    """Query rows [first, first + 128) of a head.

    Attributes:
        limit: fp32 [128, 1], new tokens that each row sees. top, total: fp32 [128, 1], running maximum and sum.
        inverse: fp32 [128, 1], 1 / total after the last section. out: fp32 [128, 256], running sum of values.
        highest: fp32 [128, spans], maxima of a section. scores: fp32 [128, keys] of it, by part, if it `has_scores`.
    """

    first: int
    scores: list
    has_scores: list
    limit: nl.ndarray = None
    top: nl.ndarray = None
    total: nl.ndarray = None
    inverse: nl.ndarray = None
    out: nl.ndarray = None
    highest: nl.ndarray = None


@dataclass
class Group(nl.NKIObject):
    """Up to 512 queries of a head of sequence b.

    Attributes:
        raw: [128, tiles, 256], where TensorE turns them. turned: q^T, [d, 1, 2, queries].
        units: of work that are still to do.
    """

    b: int
    head: int
    first: int
    tiles: list
    units: int = 0
    is_loaded: bool = False
    is_turned: bool = False
    raw: nl.ndarray = None
    turned: nl.ndarray = None


@dataclass
class Part(nl.NKIObject):
    """Keys of a section of which one exponential makes the weights: up to two spans; the first is span `at` of it.

    Attributes:
        tiles, whole, rest: as of a span. column: of its sums, a second one if some tiles have fewer keys.
        turned: weights, [j, 1, tiles, queries].
    """

    spans: list
    at: int
    tiles: int
    whole: int
    rest: int
    column: int = 0
    is_begun: bool = False
    turned: nl.ndarray = None


@dataclass
class Unit(nl.NKIObject):
    """A group of queries against a section of keys.

    Attributes:
        spans: those of the section of which the group sees any. number: of the section, 0 the first.
        section: of all. is_last: of the section. is_done: it was the group's last.
        scored: step after which all scores were there; -1: not yet.
        steps: of scores that are to come. halves: (p v)^T, fp32 [d, queries] each.
        made: banks of weights for TensorE, those of the units before among them. columns: of sums.
        sums, fades: by tile, fp32 [128, columns] of the weights, and [128, 1], what the sections before are worth.
    """

    group: Group
    spans: list
    parts: list
    number: int
    section: int
    sums: list
    fades: list
    halves: list
    columns: int = 0
    made: int = 0
    is_last: bool = False
    is_done: bool = False
    steps: int = 0
    scored: int = -1


@dataclass
class Scores(nl.NKIObject):
    """A step: scores of a unit's tile in its spans [first, end). is_last: all scores of the tile are there then."""

    unit: Unit
    tile: int
    first: int
    end: int
    is_last: bool


@dataclass
class Products(nl.NKIObject):
    """A step: weights times values of tiles of keys: tile tiles[n] of part parts[n]."""

    unit: Unit
    parts: list
    tiles: list
    is_first: bool
    is_last: bool


def make_spans(b: int, head: int, tokens: int, pages: Pages, value_pages: Pages) -> list:
    """New tokens, a token a partition, then the table's chunks: no row is without a key when the prefix is masked."""
    spans: list = []
    for at in range(0, tokens, WIDE * TILE):
        size = min(WIDE * TILE, tokens - at)
        tiles = size // TILE
        spans.append(
            Span(
                b=b, head=head, start=at, size=size, chunk=-1, rows=TILE, lines=tiles, tiles=tiles, whole=tiles, rest=0
            )
        )  # fmt: skip
    share, lines = pages.blocks // value_pages.blocks, value_pages.lines
    for c in range(pages.chunks):
        rows = rows_of_chunk(pages, c)
        last = min((c + 1) * share, value_pages.chunks)
        rest = rows_of_chunk(value_pages, last - 1)
        whole = (last - c * share) * lines if rest == TILE else (last - 1 - c * share) * lines
        spans.append(
            Span(
                b=b, head=head, start=c * pages.blocks * BLOCK, size=rows * pages.lines, chunk=c, rows=rows,
                lines=pages.lines, tiles=(last - c * share) * lines, whole=whole, rest=rest if rest < TILE else 0,
            )
        )  # fmt: skip
    return spans


def add_groups(groups: list, b: int, head: int, tokens: int) -> None:
    """A head's groups of 512 queries."""
    for first in range(0, tokens, WIDE * TILE):
        tiles: list = []
        for at in range(first, min(first + WIDE * TILE, tokens), TILE):
            tiles.append(Tile(first=at, scores=[], has_scores=[]))
        groups.append(Group(b=b, head=head, first=first, tiles=tiles))


def add_units(units: list, sections: list, groups: list, spans: list, most: int) -> None:
    """Sections of at most `most` spans, each with every group that sees any of it."""
    number = 0
    for at in range(0, len(spans), most):
        section = spans[at : at + most]
        for n in range(len(section)):
            section[n].section = len(sections)
        for g in range(len(groups)):
            seen: list = []
            for n in range(len(section)):
                if section[n].chunk >= 0 or section[n].start <= groups[g].first:
                    seen.append(section[n])
            if len(seen) > 0:
                groups[g].units = groups[g].units + 1
                unit = Unit(
                    group=groups[g], spans=seen, parts=make_parts(seen, groups[g]), number=number,
                    section=len(sections), sums=[], fades=[], halves=[],
                )  # fmt: skip
                for p in range(len(unit.parts)):
                    unit.parts[p].column = unit.columns
                    unit.columns = unit.columns + (2 if 0 < unit.parts[p].whole < unit.parts[p].tiles else 1)
                units.append(unit)
        units[len(units) - 1].is_last = True
        sections.append(section)
        number = number + 1


def make_parts(spans: list, group: Group) -> list:
    """Of the cache several spans together, then each of new tokens alone: tiles of queries see more or less of those.

    Products follow this order: the last ones are of one tile of queries each, and the first of those is done early.
    """
    parts: list = []
    own: list = []
    room = 0
    for n in range(len(spans)):
        span = spans[n]
        if span.chunk < 0:
            tiles = min(span.size, group.first + len(group.tiles) * TILE - span.start) // TILE
            own.append(Part(spans=[span], at=n, tiles=tiles, whole=tiles, rest=0))
        elif room > 0:
            part = parts[len(parts) - 1]
            part.spans.append(span)
            part.tiles = part.tiles + span.tiles
            part.whole = part.whole + span.whole
            part.rest = span.rest
            room = room - 1
        else:
            parts.append(Part(spans=[span], at=n, tiles=span.tiles, whole=span.whole, rest=span.rest))
            room = TOGETHER - 1
    for n in range(len(own)):
        parts.append(own[n])
    return parts


def score_steps(units: list) -> list:
    """New tokens of the first groups, then tile by tile, up to four spans a step; single ones of the first tile.

    Those few keys are there first, and the first tile's from the cache come in one by one.
    """
    steps: list = []
    ahead = 0
    for n in range(min(AHEAD, len(units))):
        spans = units[n].spans
        if ahead == n and units[n].section == 0 and len(spans) > 1 and spans[0].chunk < 0 and spans[1].chunk >= 0:
            ahead = n + 1
    for n in range(ahead):
        for t in range(len(units[n].group.tiles)):
            steps.append(Scores(unit=units[n], tile=t, first=0, end=1, is_last=False))
            units[n].steps = units[n].steps + 1
    for n in range(len(units)):
        for t in range(len(units[n].group.tiles)):
            wide = 1 if n == 0 and t == 0 else WIDE
            for at in range(1 if n < ahead else 0, len(units[n].spans), wide):
                end = min(at + wide, len(units[n].spans))
                steps.append(Scores(unit=units[n], tile=t, first=at, end=end, is_last=end == len(units[n].spans)))
                units[n].steps = units[n].steps + 1
    return steps


def product_steps(units: list) -> list:
    """Steps of up to four tiles of keys."""
    steps: list = []
    for n in range(len(units)):
        parts: list = []
        tiles: list = []
        for p in range(len(units[n].parts)):
            for t in range(units[n].parts[p].tiles):
                parts.append(units[n].parts[p])
                tiles.append(t)
        for at in range(0, len(parts), WIDE):
            end = min(at + WIDE, len(parts))
            steps.append(
                Products(
                    unit=units[n], parts=parts[at:end], tiles=tiles[at:end], is_first=at == 0,
                    is_last=end == len(parts),
                )
            )  # fmt: skip
    return steps
