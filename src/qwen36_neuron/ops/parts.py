"""Rows that verify drafts, as launches of a kernel take them: a few at a time where all of them are too many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .banks import Verify, checkpoint_counts, source_entries


@dataclass(frozen=True, slots=True)
class Part:
    """Rows [first, last) of a call, and checkpoints of theirs. All tensors are int32.

    Attributes:
        source: [n], entries that hold the rows' states, the scratch entry for a row that starts its sequence.
        lane, accepted: [n], as in `Verify`.
        row: [c], of which row of these each checkpoint is.
        after: [c], after how many tokens.
        to: [c], entry that it is written to; 0 for none.
    """

    first: int
    last: int
    source: torch.Tensor
    lane: torch.Tensor
    accepted: torch.Tensor
    row: torch.Tensor
    after: torch.Tensor
    to: torch.Tensor


def cut(rows: Verify, at_once: Callable[[int], int]) -> list[Part]:
    """The rows in as few parts as will do, a launch each, in order.

    A checkpoint is made of its row's old state, so it is in the row's part. No more are there than rows.

    Args:
        at_once: how many rows a launch takes with so many checkpoints.
    Raises:
        ValueError: it takes not one.
    """
    batch, checks = len(rows.lane), len(rows.commit_to)
    most = max((n for n in range(1, batch + 1) if n <= at_once(min(n, checks))), default=0)
    if not most:
        raise ValueError(f"a launch takes {at_once(1)} rows with a checkpoint, must be 1 at least")
    size = -(-batch // -(-batch // most))
    return [_part(rows, first, min(first + size, batch)) for first in range(0, batch, size)]


def _part(rows: Verify, first: int, last: int) -> Part:
    own, n, batch = slice(first, last), last - first, len(rows.lane)
    sources, checks = source_entries(rows), len(rows.commit_to)
    if n < checks:  # one a row, wanted or not
        row = torch.arange(n, dtype=torch.int32, device=rows.lane.device)
        wanted = rows.commit_at.view(1, -1) == (row + first).view(-1, 1)
        after, to = checkpoint_counts(rows)[own], (wanted * rows.commit_to).amax(1).to(torch.int32)
    else:
        row, after, to = rows.commit_at, rows.commit_after, rows.commit_to
        if n < batch:
            row = row - first
            to = to.masked_fill((row < 0) | (row >= n), 0)
            row = row.clamp(0, n - 1)
    return Part(first, last, sources[own], rows.lane[own], rows.accepted[own], row, after, to)


def pending_rows(lanes: torch.Tensor, accepted: torch.Tensor, drafts: int) -> torch.Tensor:
    """int32 [n * drafts, 1]: where a bank of pending drafts, [lanes, drafts, ...], holds those that were accepted.

    By lane * drafts + place; 0, of the scratch lane, for those that were not, since theirs may hold anything.
    """
    places = torch.arange(drafts, dtype=torch.int32, device=lanes.device).view(1, -1)
    held = lanes.view(-1, 1) * drafts + places
    return held.masked_fill(places >= accepted.view(-1, 1), 0).view(-1, 1)
