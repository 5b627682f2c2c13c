"""What the lanes of a runtime owe the draft layer: tokens that have run, and their hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..config import BLOCK_SIZE
from ..step import Commit, Row

MOST_AT_ONCE = 1024
"""Tokens of prompts whose last layer is run in one call, which holds all that the layer computes of them."""


@dataclass(slots=True)
class Segment:
    """Tokens of a lane that have run.

    Attributes:
        start: position of the first one.
        tokens: their ids.
        hidden: [tokens, hidden] after the final norm, or what goes into the last layer if not `complete`.
        commits: checkpoints that wait for a hidden state of them.
    """

    start: int
    tokens: Sequence[int]
    hidden: torch.Tensor
    complete: bool = True
    commits: list[Commit] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Position after the last one."""
        return self.start + len(self.tokens)


@dataclass(slots=True)
class Lane:
    """What one lane has run and the layer has not seen yet.

    Attributes:
        written: positions below this one have the layer's key and value, except position 0.
        end: position after the last token that is certain and has run.
        segments: what has run, in order, from position `written` - 1 on.
        drafts: the last row's drafts and their hidden states, uncertain yet.
        crossed: a boundary that is not in `segments` any more and that the next row may take a checkpoint at, and the
            hidden state before it.
        blocks: the sequence's KV blocks.
    """

    written: int = 1
    end: int = 0
    segments: list[Segment] = field(default_factory=list)
    drafts: Segment | None = None
    crossed: tuple[int, torch.Tensor] | None = None
    blocks: Sequence[int] = ()

    @property
    def owes(self) -> int:
        """Positions that have run and have no key and value of the layer yet."""
        return self.end - self.written

    def confirm(self, count: int) -> None:
        """So many of the last row's drafts were right; it may be said twice."""
        if self.drafts is not None and count:
            right = Segment(self.drafts.start, self.drafts.tokens[:count], self.drafts.hidden[:count])
            self.segments.append(right)
            self.end = right.end
        self.drafts = None


def is_plain(row: Row, lane: Lane) -> bool:
    """A row of one token that leaves nothing behind, of a lane whose full blocks are written."""
    if len(row.tokens) != 1 or row.drafts or row.commits:
        return False
    return lane.written >= row.end // BLOCK_SIZE * BLOCK_SIZE


def of_one_length(waiting: Sequence[tuple[int, Segment]]) -> list[list[tuple[int, Segment]]]:
    """Segments of lanes in groups of as many tokens each, MOST_AT_ONCE in all or a single one."""
    groups: list[list[tuple[int, Segment]]] = []
    for number, segment in sorted(waiting, key=lambda one: len(one[1].tokens)):
        length = len(segment.tokens)
        if groups and len(groups[-1][0][1].tokens) == length and length * (1 + len(groups[-1])) <= MOST_AT_ONCE:
            groups[-1].append((number, segment))
        else:
            groups.append([(number, segment)])
    return groups
