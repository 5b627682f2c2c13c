"""What `attend_many` does in which order: keys in spans, sections and parts, queries in groups, work in steps."""

from dataclasses import dataclass

import nki.language as nl

from .delta_rule_tiles import BANK_COLUMNS, TILE
from .paged_gather import BLOCK, Pages, rows_of_chunk

WIDE = BANK_COLUMNS // TILE
"""Tiles of queries whose sums share a bank, and tiles of keys whose scores of one query do."""
SECTION = 32768
"""Bytes a partition of a section's keys and values: 4,096 keys in bfloat16, half of them in float32."""
TOGETHER = 2
"""Spans whose weights one exponential makes: reading the sums out takes ScalarE as long as 200 of them."""


@dataclass
class Span(nl.NKIObject):
    """Up to 512 keys of a key head of sequence b: new tokens, or a chunk of the table.

    Attributes:
        start: position of its first key, among the new tokens or in the cache. chunk: in the table; -1: new tokens.
        rows, lines: key n of row p is the span's p * across + n * along.
        section: of all sections. raw: [rows, lines, 256]. turned: k^T in order, [d, 2, size].
        values: [128, tiles, 256], in tiles of 128 keys.
    """

    b: int
    head: int
    start: int
    size: int
    chunk: int
    rows: int
    lines: int
    across: int
    along: int
    section: int = 0
    raw: nl.ndarray = None
    turned: nl.ndarray = None
    values: nl.ndarray = None
    is_turned: bool = False
    has_values: bool = False


@dataclass
class Tile(nl.NKIObject):
    """Query rows [first, first + 128) of a head.

    Attributes:
        limit: fp32 [128, 1], new tokens that each row sees. top, total: fp32 [128, 1], running maximum and sum.
        inverse: fp32 [128, 1], 1 / total after the last section. out: fp32 [128, 256], running sum of values.
        highest: fp32 [128, spans], maxima of a section. scores: fp32 [128, keys] of it, by part.
    """

    first: int
    scores: list
    limit: nl.ndarray = None
    top: nl.ndarray = None
    total: nl.ndarray = None
    inverse: nl.ndarray = None
    out: nl.ndarray = None
    highest: nl.ndarray = None


@dataclass
class Group(nl.NKIObject):
    """Up to 512 queries of a head of sequence b. turned: q^T, [d, 2, queries]. units: of work that are still to do."""

    b: int
    head: int
    first: int
    tiles: list
    units: int = 0
    is_loaded: bool = False
    turned: nl.ndarray = None


@dataclass
class Part(nl.NKIObject):
    """Keys of a section of which one exponential makes the weights: up to two spans; the first is span `at` of it.

    Attributes:
        tiles: tiles of 128 keys. turned: weights, [j, tiles, queries].
    """

    spans: list
    at: int
    tiles: int
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
        sums, fades: by tile, fp32 [128, parts] of the weights, and [128, 1], what the sections before are worth.
    """

    group: Group
    spans: list
    parts: list
    number: int
    section: int
    sums: list
    fades: list
    halves: list
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


def make_spans(b: int, head: int, tokens: int, pages: Pages) -> list:
    """New tokens, then the table's chunks: no row is without a key when the prefix is masked."""
    spans: list = []
    for at in range(0, tokens, WIDE * TILE):
        size = min(WIDE * TILE, tokens - at)
        spans.append(
            Span(b=b, head=head, start=at, size=size, chunk=-1, rows=TILE, lines=size // TILE, across=1, along=TILE)
        )
    for c in range(pages.chunks):
        rows = rows_of_chunk(pages, c)
        spans.append(
            Span(
                b=b, head=head, start=c * pages.blocks * BLOCK, size=rows * pages.lines, chunk=c, rows=rows,
                lines=pages.lines, across=pages.lines, along=1,
            )
        )  # fmt: skip
    return spans


def add_groups(groups: list, b: int, head: int, tokens: int) -> None:
    """A head's groups of 512 queries."""
    for first in range(0, tokens, WIDE * TILE):
        tiles: list = []
        for at in range(first, min(first + WIDE * TILE, tokens), TILE):
            tiles.append(Tile(first=at, scores=[]))
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
                units.append(
                    Unit(
                        group=groups[g], spans=seen, parts=make_parts(seen, groups[g]), number=number,
                        section=len(sections), sums=[], fades=[], halves=[],
                    )
                )  # fmt: skip
        units[len(units) - 1].is_last = True
        sections.append(section)
        number = number + 1


def make_parts(spans: list, group: Group) -> list:
    """Each span of new tokens alone, since tiles of queries see more or less of it; of the cache several together."""
    parts: list = []
    room = 0
    for n in range(len(spans)):
        size = spans[n].size
        if spans[n].chunk < 0:
            size = min(size, group.first + len(group.tiles) * TILE - spans[n].start)
        tiles = (size + TILE - 1) // TILE
        if room > 0:
            part = parts[len(parts) - 1]
            part.spans.append(spans[n])
            part.tiles = part.tiles + tiles
            room = room - 1
        else:
            parts.append(Part(spans=[spans[n]], at=n, tiles=tiles))
            room = TOGETHER - 1 if spans[n].chunk >= 0 else 0
    return parts


def score_steps(units: list) -> list:
    """Tile by tile, steps of up to four spans; of the first tile single ones, as its keys come in."""
    steps: list = []
    for n in range(len(units)):
        for t in range(len(units[n].group.tiles)):
            wide = 1 if n == 0 and t == 0 else WIDE
            for at in range(0, len(units[n].spans), wide):
                end = min(at + wide, len(units[n].spans))
                steps.append(Scores(unit=units[n], tile=t, first=at, end=end, is_last=end == len(units[n].spans)))
            units[n].steps = units[n].steps + (len(units[n].spans) + wide - 1) // wide
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
