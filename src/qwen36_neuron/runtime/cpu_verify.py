"""A step's memory on CPU for rows with drafts: accepted ones are absorbed, new ones run and leave no trace.

A lane's state never has an unconfirmed token in it, so nothing is rolled back. What a DeltaNet layer needs to take one
in later is small (`cache.DraftFactors`), and the row that follows says how many were right. Keys and values of those
that were not are written over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..cache import HybridCache
from ..model.state import Mixing
from ..ops.attention import PagedRow, attend, write_kv
from ..ops.causal_conv1d import causal_conv1d_cpu
from ..ops.gated_delta_rule import gated_delta_rule_step
from ..step import Row
from .cpu_state import StateEntries


@dataclass(slots=True)
class CpuVerify(Mixing):
    """Rows of as many tokens, and as many drafts behind them: tensors are [batch, tokens + drafts, ...].

    Attributes:
        entries: where the rows' states are.
        rows: the rows; where: their KV, drafts included.
        accepted: how many of its lane's last drafts each row takes in first.
    """

    cache: HybridCache
    entries: StateEntries
    rows: Sequence[Row]
    where: Sequence[PagedRow]
    accepted: Sequence[int]

    def convolve(self, layer: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        bank, pending = self.cache.banks[layer].window, self.cache.drafts[layer].inputs
        windows, tokens = self.entries.read(bank), len(self.rows[0].tokens)
        size, out, left = windows.shape[1], torch.empty_like(x), []
        for index, (row, accepted) in enumerate(zip(self.rows, self.accepted, strict=True)):
            joined = torch.cat((windows[index], pending[row.lane, :accepted], x[index]))
            out[index] = causal_conv1d_cpu(joined[None, accepted:], weight)[0]
            for count, slot in self._commits(index):
                bank[slot] = joined[count : count + size]
            left.append(joined[accepted + tokens : accepted + tokens + size])
            pending[row.lane, : len(row.drafts)] = x[index, tokens:]
        bank[self.entries.lanes] = torch.stack(left)
        return out

    def delta_rule(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        bank, pending = self.cache.banks[layer].recurrent, self.cache.drafts[layer]
        states, tokens = self.entries.read(bank), len(self.rows[0].tokens)
        lanes = torch.tensor([row.lane for row in self.rows])
        for place in range(max(self.accepted)):
            right = torch.tensor([[float(place < accepted)] for accepted in self.accepted])
            keys, values = pending.k[lanes, place], pending.v[lanes, place]
            decay, rate = pending.g[lanes, place] * right, pending.beta[lanes, place] * right
            gated_delta_rule_step(keys, keys, values, decay, rate, states)  # of g = 0 and beta = 0 nothing changes
            self._checkpoint(bank, states, [place + 1 if place < accepted else 0 for accepted in self.accepted])
        out = v.new_empty(v.shape, dtype=torch.float32)
        for token in range(tokens):
            out[:, token] = _step(q, k, v, g, beta, token, states)
            self._checkpoint(bank, states, [accepted + token + 1 for accepted in self.accepted])
        self.entries.write(bank, states)

        drafts = q.shape[1] - tokens
        if drafts:
            beyond = states.clone()
            for token in range(tokens, tokens + drafts):
                out[:, token] = _step(q, k, v, g, beta, token, beyond)
            for factors, new in ((pending.k, k), (pending.v, v), (pending.g, g), (pending.beta, beta)):
                factors[lanes, :drafts] = new[:, tokens:]
        return out

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        cache, out = self.cache.positions(layer), torch.empty_like(q)
        for index, row in enumerate(self.where):
            write_kv(cache, k[index], v[index], row)
            out[index] = attend(q[index], cache, row)
        return out

    def _commits(self, index: int) -> Iterator[tuple[int, int]]:
        """Of a row's checkpoints: after how many tokens, accepted ones counted, and the entry."""
        row, accepted = self.rows[index], self.accepted[index]
        for commit in row.commits:
            yield commit.boundary - row.start + accepted, self.cache.spec.slot_entry(commit.slot)

    def _checkpoint(self, bank: torch.Tensor, states: torch.Tensor, counts: Sequence[int]) -> None:
        """Copy the states of rows that have a checkpoint after just so many tokens."""
        for index, count in enumerate(counts):
            for at, entry in self._commits(index):
                if at == count:
                    bank[entry] = states[index]


def _step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    token: int,
    states: torch.Tensor,
) -> torch.Tensor:
    return gated_delta_rule_step(q[:, token], k[:, token], v[:, token], g[:, token], beta[:, token], states)
