"""Which entries of a bank a call's rows read their states from, and which they write.

A graph holds the states of all sequences in banks, [entries, ...], and says by index which entry a row reads and which
it writes. Entry 0 is scratch: padding reads and writes there. The index tensors are inputs of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Span:
    """One row of many tokens in a padded layout that starts at a block boundary. All tensors are int32.

    Attributes:
        first: [1], places before the row's own tokens.
        end: [1], place after its last token.
        fresh: bool [1], the row starts its sequence: its state is zero, whatever its entry holds.
        source, lane: [1], entries to read the state from and to write it to.
        commit_at: [n], number of whole blocks of the layout after which the state is written to entry `commit_to` too.
        commit_to: [n]; 0 for none.
    """

    first: torch.Tensor
    end: torch.Tensor
    fresh: torch.Tensor
    source: torch.Tensor
    lane: torch.Tensor
    commit_at: torch.Tensor
    commit_to: torch.Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one token. All tensors are int32.

    Attributes:
        fresh, source, lane: [batch], as in `Span`.
        commit_at: [n], the row whose state after the token is written to entry `commit_to` too.
        commit_to: [n]; 0 for none.
    """

    fresh: torch.Tensor
    source: torch.Tensor
    lane: torch.Tensor
    commit_at: torch.Tensor
    commit_to: torch.Tensor


@dataclass(frozen=True, slots=True)
class Verify:
    """Rows of one token that is certain and of drafts behind it, as many in every row. All tensors are int32.

    A lane's state has no draft in it. What it needs to take one in later is in a second bank, [1 + lanes, most drafts,
    ...], by lane: the row that follows says how many were right. Rows of which nobody is in need have lane 0.

    Attributes:
        fresh, source, lane: [batch], as in `Span`; the lane's drafts are pending whatever the source is.
        accepted: [batch], pending drafts of the lane that the row takes in before its own token.
        commit_at: [n], row of which a state is written to entry `commit_to` too; at most one of a row.
        commit_after: [n], after how many tokens, accepted ones counted: 1 to accepted + 1.
        commit_to: [n]; 0 for none.

    No row reads an entry that another one writes.
    """

    fresh: torch.Tensor
    source: torch.Tensor
    lane: torch.Tensor
    accepted: torch.Tensor
    commit_at: torch.Tensor
    commit_after: torch.Tensor
    commit_to: torch.Tensor
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` makes of these tensors alone, by the first layer that asks, for all layers."""
        if key not in self._made:
            self._made[key] = make()
        found: Made = self._made[key]
        return found


def factor_columns(dk: int, dv: int, share: int) -> int:
    """Columns of a pending draft for a key head with `share` value heads: unit key, what they write there, gates."""
    return dk + share * (dv + 1)


OutputAndBank = tuple[torch.Tensor, torch.Tensor]
"""What an operation computes, and the bank with the rows' states and checkpoints in it."""

OutputAndBanks = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""The same, and the bank of pending drafts with the rows' own in it."""


def source_entries(at: Span | Batch | Verify) -> torch.Tensor:
    """int32 [rows]: the entries that hold the rows' states; for a row that starts its sequence the scratch entry."""
    return at.source.masked_fill(at.fresh, 0)


def target_entries(bank: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """int32, the given entries with the scratch entry replaced by one past the last, where a kernel writes nothing."""
    return entries.masked_fill(entries == 0, bank.shape[0])


def checkpoint_entries(bank: torch.Tensor, at: Span | Batch, places: torch.Tensor) -> torch.Tensor:
    """int32 [n]: the entry for the checkpoint at each of the int32 `places`, one past the last where none is asked for.

    Which places those are is an input of the graph; a place is a number of blocks of a `Span`, a row of a `Batch`.
    """
    wanted = at.commit_at.view(1, -1) == places.view(-1, 1)
    return target_entries(bank, (wanted * at.commit_to).amax(1).to(torch.int32))


def row_entries(bank: torch.Tensor, batch: Batch) -> torch.Tensor:
    """int32 [1, 2 * rows]: the entry of each row's lane, then that of its checkpoint."""
    rows = torch.arange(len(batch.lane), dtype=torch.int32, device=batch.lane.device)
    return torch.stack((target_entries(bank, batch.lane), checkpoint_entries(bank, batch, rows)), 1).view(1, -1)


def checkpoint_counts(rows: Verify) -> torch.Tensor:
    """int32 [batch]: after how many tokens each row's checkpoint is taken, 0 where it has none."""
    index = torch.arange(len(rows.lane), dtype=torch.int32, device=rows.lane.device)
    wanted = (rows.commit_at.view(1, -1) == index.view(-1, 1)) & (rows.commit_to != 0)
    return (wanted * rows.commit_after).amax(1).to(torch.int32)


def write_pending(pending: torch.Tensor, lanes: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """The bank with a row's drafts, new [batch, drafts, ...], as the first of its lane's."""
    lanes, drafts = lanes.long(), new.shape[1]
    return pending.index_copy(0, lanes, torch.cat((new, pending.index_select(0, lanes)[:, drafts:]), dim=1))
