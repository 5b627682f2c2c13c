"""A step's memory on CPU: caches updated in place, rows read where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..cache import HybridCache
from ..config import BLOCK_SIZE
from ..model.state import Mixing
from ..ops.causal_conv1d import causal_conv1d_cpu, causal_conv1d_step
from ..ops.gated_delta_rule import gated_delta_rule_step
from ..ops.gated_delta_rule_cpu import StateCopy, gated_delta_rule_prefill_cpu
from ..ops.paged_attention import PagedRow, attend, write_kv
from ..step import Commit


def lane_index(lanes: Sequence[int]) -> slice | torch.Tensor:
    """Lanes as a slice where they are neighbours, so that states are used in place, else as an index."""
    first = lanes[0]
    if all(lane == first + i for i, lane in enumerate(lanes)):
        return slice(first, first + len(lanes))
    return torch.tensor(lanes, dtype=torch.int64)


@dataclass(slots=True)
class CpuPrefill(Mixing):
    """Rows of many tokens, padded on the right.

    Attributes:
        lanes: the rows' lanes.
        rows: where the rows' KV is.
        lengths: real tokens of each row.
        lead: start % BLOCK_SIZE, the same for all rows.
        commits: checkpoints to take of each row.
    """

    cache: HybridCache
    lanes: slice | torch.Tensor
    rows: Sequence[PagedRow]
    lengths: Sequence[int]
    lead: int
    commits: Sequence[Sequence[Commit]]

    def convolve(self, layer: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        windows = self.cache.lanes[layer].window
        window = windows[self.lanes]
        joined, size = torch.cat((window, x), dim=1), window.shape[1]
        for index, (row, commits) in enumerate(zip(self.rows, self.commits, strict=True)):
            for commit in commits:
                at = commit.boundary - row.start
                self.cache.slots[layer].window[commit.slot] = joined[index, at : at + size]
        # A window ends at the last real token of its row, not at the padding.
        windows[self.lanes] = torch.stack([joined[row, n : n + size] for row, n in enumerate(self.lengths)])
        return causal_conv1d_cpu(joined, weight)

    def delta_rule(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        for index, length in enumerate(self.lengths):
            g[index, length:] = 0.0
            beta[index, length:] = 0.0
        states = self.cache.lanes[layer].recurrent
        copies = self._state_copies(layer)
        out, final = gated_delta_rule_prefill_cpu(q, k, v, g, beta, states[self.lanes], self.lead, copies)
        states[self.lanes] = final
        return out

    def _state_copies(self, layer: int) -> list[StateCopy]:
        """The checkpoints to take of a layer's states."""
        slots = self.cache.slots[layer].recurrent
        return [
            StateCopy(index, (commit.boundary - row.start + self.lead) // BLOCK_SIZE - 1, slots[commit.slot])
            for index, (row, commits) in enumerate(zip(self.rows, self.commits, strict=True))
            for commit in commits
        ]

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        cache = self.cache.kv[layer]
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
        new: KV slots of the rows' tokens, int64 [batch].
    """

    cache: HybridCache
    lanes: slice | torch.Tensor
    rows: Sequence[PagedRow]
    new: torch.Tensor

    def convolve(self, layer: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        windows = self.cache.lanes[layer].window
        y, windows[self.lanes] = causal_conv1d_step(x, windows[self.lanes], weight)
        return y

    def delta_rule(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        states = self.cache.lanes[layer].recurrent
        current = states[self.lanes]
        out = gated_delta_rule_step(q[:, 0], k[:, 0], v[:, 0], g[:, 0], beta[:, 0], current)
        if isinstance(self.lanes, torch.Tensor):
            states[self.lanes] = current
        return out.unsqueeze(1)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        cache = self.cache.kv[layer]
        cache[0].index_copy_(0, self.new, k[:, 0])
        cache[1].index_copy_(0, self.new, v[:, 0])
        return torch.stack([attend(q[index], cache, row) for index, row in enumerate(self.rows)])
