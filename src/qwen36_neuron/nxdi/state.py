"""A step's memory in a compiled graph: static shapes, everything gathered by index and given back as new tensors.

The arithmetic is that of `ops`; a device kernel takes the place of an operation there, not here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config import BLOCK_SIZE
from ..ops.block_attention import (
    block_attention,
    block_of,
    gather_blocks,
    offset_of,
    whole_blocks,
    write_blocks,
    write_tokens,
)
from ..ops.causal_conv1d import causal_conv1d, place_window, windows_at
from ..ops.gated_delta_rule import gated_delta_rule_boundaries, gated_delta_rule_step
from .cache import StepMemory
from .inputs import DecodeInputs, PrefillInputs


def read(bank: torch.Tensor, entries: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """The rows' states: zero for a row that starts, whatever the entry holds, so that nothing stale is ever read."""
    states = bank.index_select(0, entries)
    fresh = (starts == 0).view(-1, *[1] * (bank.dim() - 1))
    return states.masked_fill(fresh, 0.0)


@dataclass(slots=True)
class GraphPrefill:
    """One row of many tokens, laid out by whole blocks: `lead` padded tokens, the row's own, padding."""

    memory: StepMemory
    step: PrefillInputs

    @property
    def lead(self) -> torch.Tensor:
        """[1], padding before the row's own tokens."""
        return offset_of(self.step.starts)

    @property
    def positions(self) -> torch.Tensor:
        """[1, active], of every place of the layout."""
        active = self.step.tokens.shape[1]
        return self.step.starts - self.lead + torch.arange(active, device=self.step.tokens.device).view(1, -1)

    @property
    def last(self) -> torch.Tensor:
        """[1], place of the row's last token."""
        return self.lead + self.step.lengths - 1

    @property
    def _written(self) -> torch.Tensor:
        """Entries that the row leaves states in: its lane, then its checkpoints."""
        return torch.cat((self.step.lanes, self.step.commit_to)).long()

    def convolve(self, layer: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        bank = self.memory.window[layer]
        size = bank.shape[1]
        joined = place_window(x, read(bank, self.step.sources, self.step.starts), self.lead)
        ends = torch.cat((self.last + 1, self.step.commit_at * BLOCK_SIZE))
        self.memory.window[layer] = bank.index_copy(0, self._written, windows_at(joined, ends, size))
        return causal_conv1d(joined[:, size:], joined[:, :size], weight)

    def delta_rule(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        place = torch.arange(g.shape[1], device=g.device).view(1, -1, 1)
        padding = (place < self.lead) | (place > self.last)
        g, beta = g.masked_fill(padding, 0.0), beta.masked_fill(padding, 0.0)
        bank = self.memory.recurrent[layer]
        state = read(bank, self.step.sources, self.step.starts)
        out, states = gated_delta_rule_boundaries(q, k, v, g, beta, state)
        # Padding changes nothing, so the state after the last chunk is the state after the last token.
        kept = torch.cat((states[-1:], states.index_select(0, self.step.commit_at - 1)))
        self.memory.recurrent[layer] = bank.index_copy(0, self._written, kept)
        return out

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        table, active = self.step.table, self.step.tokens.shape[1] // BLOCK_SIZE
        before = table[:, : table.shape[1] - active]
        keys, values = self.memory.kv[layer]
        prior = (gather_blocks(keys, before), gather_blocks(values, before)) if before.shape[1] else None
        run = block_of(self.step.starts) + torch.arange(active, device=table.device)
        blocks = table[0].index_select(0, run)
        own_keys, own_values = (whole_blocks(cache, x[0], blocks, self.lead) for cache, x in ((keys, k), (values, v)))
        self.memory.kv[layer] = write_blocks(keys, own_keys, blocks), write_blocks(values, own_values, blocks)
        first = self.step.starts - self.lead
        return block_attention(q, own_keys.unsqueeze(0), own_values.unsqueeze(0), prior, first)


@dataclass(slots=True)
class GraphDecode:
    """Rows of one token: tensors are [batch, 1, ...]. A padded row starts at 0 and writes to scratch."""

    memory: StepMemory
    step: DecodeInputs

    @property
    def positions(self) -> torch.Tensor:
        """[batch, 1]."""
        return self.step.starts.view(-1, 1)

    def _leave(self, bank: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """The bank with the rows' states and checkpoints in it."""
        entries = torch.cat((self.step.lanes, self.step.commit_to)).long()
        return bank.index_copy(0, entries, torch.cat((states, states.index_select(0, self.step.commit_at))))

    def convolve(self, layer: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        bank = self.memory.window[layer]
        window = read(bank, self.step.sources, self.step.starts)
        self.memory.window[layer] = self._leave(bank, torch.cat((window[:, 1:], x), dim=1))
        return causal_conv1d(x, window, weight)

    def delta_rule(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        bank = self.memory.recurrent[layer]
        state = read(bank, self.step.sources, self.step.starts)  # a gathered copy, which the step may change
        out = gated_delta_rule_step(q[:, 0], k[:, 0], v[:, 0], g[:, 0], beta[:, 0], state)
        self.memory.recurrent[layer] = self._leave(bank, state)
        return out.unsqueeze(1)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        table, starts = self.step.table, self.step.starts
        keys, values = self.memory.kv[layer]
        prior = gather_blocks(keys, table), gather_blocks(values, table)
        block = table.gather(1, block_of(starts).long().view(-1, 1))[:, 0]
        slots = block * BLOCK_SIZE + offset_of(starts)
        self.memory.kv[layer] = write_tokens(keys, k[:, 0], slots), write_tokens(values, v[:, 0], slots)
        return block_attention(q, k, v, prior, starts)
