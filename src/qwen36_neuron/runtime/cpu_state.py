"""A step's memory on CPU: caches updated in place, rows read where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..cache import CacheSpec, HybridCache
from ..config import BLOCK_SIZE
from ..model.state import Mixing
from ..ops.attention import PagedRow, attend, write_kv
from ..ops.causal_conv1d import causal_conv1d_cpu, causal_conv1d_step
from ..ops.fp8 import replace_rows_in_place
from ..ops.gated_delta_rule import StateCopy, gated_delta_rule_prefill_cpu, gated_delta_rule_step
from ..step import Commit, Row


def source(row: Row, spec: CacheSpec) -> int:
    """The entry that a row's states are read from: its lane, or the checkpoint slot that it restores."""
    return row.lane if row.restore is None else spec.slot_entry(row.restore)


def entry_index(entries: Sequence[int]) -> slice | torch.Tensor:
    """Entries of a bank as a slice where they are neighbours, so that states are used in place, else as an index."""
    first = entries[0]
    if all(entry == first + i for i, entry in enumerate(entries)):
        return slice(first, first + len(entries))
    return torch.tensor(entries, dtype=torch.int64)


@dataclass(frozen=True, slots=True)
class StateEntries:
    """Where the states of a call's rows are read and left: entries of the banks.

    Attributes:
        sources: read from: the rows' lanes, or the checkpoint slots that they restore.
        lanes: left in.
        fresh: rows that start from a zero state and read nothing.
    """

    sources: slice | torch.Tensor
    lanes: slice | torch.Tensor
    fresh: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[Row], spec: CacheSpec) -> StateEntries:
        lanes = [row.lane for row in rows]
        sources = [source(row, spec) for row in rows]
        fresh = tuple(index for index, row in enumerate(rows) if row.start == 0)
        return cls(entry_index(sources), entry_index(lanes), fresh)

    @property
    def in_place(self) -> bool:
        """Whether the states are read where they are left, side by side."""
        return isinstance(self.sources, slice) and self.sources == self.lanes and not self.fresh

    def read(self, bank: torch.Tensor) -> torch.Tensor:
        """The rows' states, [batch, ...] of a bank [entries, ...]: a view of it if `in_place`, else a copy."""
        states = bank[self.sources]
        if self.in_place:
            return states
        states = states.clone() if isinstance(self.sources, slice) else states
        for row in self.fresh:
            states[row] = 0.0
        return states

    def write(self, bank: torch.Tensor, states: torch.Tensor) -> None:
        """Leave states that `read` gave, changed since, in the rows' lanes."""
        if not self.in_place:
            bank[self.lanes] = states


@dataclass(slots=True)
class CpuPrefill(Mixing):
    """Rows of many tokens, padded on the right.

    Attributes:
        entries: where the rows' states are.
        rows: where the rows' KV is.
        lengths: real tokens of each row.
        lead: start % BLOCK_SIZE, the same for all rows.
        commits: checkpoints to take of each row.
    """

    cache: HybridCache
    entries: StateEntries
    rows: Sequence[PagedRow]
    lengths: Sequence[int]
    lead: int
    commits: Sequence[Sequence[Commit]]

    def convolve(self, layer: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        bank, spec = self.cache.banks[layer].window, self.cache.spec
        window = self.entries.read(bank)
        joined, size = torch.cat((window, x), dim=1), window.shape[1]
        for index, (row, commits) in enumerate(zip(self.rows, self.commits, strict=True)):
            for commit in commits:
                at = commit.boundary - row.start
                bank[spec.slot_entry(commit.slot)] = joined[index, at : at + size]
        # A window ends at the last real token of its row, not at the padding.
        bank[self.entries.lanes] = torch.stack([joined[row, n : n + size] for row, n in enumerate(self.lengths)])
        return causal_conv1d_cpu(joined, weight)

    def delta_rule(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        for index, length in enumerate(self.lengths):
            g[index, length:] = 0.0
            beta[index, length:] = 0.0
        bank = self.cache.banks[layer].recurrent
        copies, states = self._state_copies(bank), self.entries.read(bank)
        out, bank[self.entries.lanes] = gated_delta_rule_prefill_cpu(q, k, v, g, beta, states, self.lead, copies)
        return out

    def _state_copies(self, bank: torch.Tensor) -> list[StateCopy]:
        """The checkpoints to take of a layer's states."""
        entry = self.cache.spec.slot_entry
        return [
            StateCopy(index, (commit.boundary - row.start + self.lead) // BLOCK_SIZE - 1, bank[entry(commit.slot)])
            for index, (row, commits) in enumerate(zip(self.rows, self.commits, strict=True))
            for commit in commits
        ]

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        cache = self.cache.positions(layer)
        out = torch.empty_like(q) if len(self.rows) > 1 else None
        for index, (row, length) in enumerate(zip(self.rows, self.lengths, strict=True)):
            write_kv(cache, k[index, :length], v[index, :length], row)
            result = attend(q[index, :length], cache, row)
            if out is None:
                return result.unsqueeze(0)
            out[index, :length] = result
            out[index, length:] = 0.0  # padding must stay finite: a NaN would pass through beta = 0
        assert out is not None
        return out


@dataclass(slots=True)
class CpuDecode(Mixing):
    """Rows of one token: tensors are [batch, 1, ...].

    Attributes:
        entries: where the rows' states are.
        new: positions of the rows' tokens in the paged KV, int64 [batch].
    """

    cache: HybridCache
    entries: StateEntries
    rows: Sequence[PagedRow]
    new: torch.Tensor

    def convolve(self, layer: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        bank = self.cache.banks[layer].window
        y, bank[self.entries.lanes] = causal_conv1d_step(x, self.entries.read(bank), weight)
        return y

    def delta_rule(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        bank = self.cache.banks[layer].recurrent
        states = self.entries.read(bank)
        out = gated_delta_rule_step(q[:, 0], k[:, 0], v[:, 0], g[:, 0], beta[:, 0], states)
        self.entries.write(bank, states)
        return out.unsqueeze(1)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        cache = self.cache.positions(layer)
        for half, new in zip(cache, (k, v), strict=True):
            replace_rows_in_place(half, self.new, new[:, 0])
        return torch.stack([attend(q[index], cache, row) for index, row in enumerate(self.rows)])
