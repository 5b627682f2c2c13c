"""A step's memory in a compiled graph: static shapes, everything found by index and given back.

Where things are is decided here; what is done there is an operation of `ops.kernels`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config import BLOCK_SIZE
from ..model.state import Mixing, select_tokens
from ..ops.attention import block_of, offset_of, whole_blocks, write_blocks, write_tokens
from ..ops.banks import Batch, Span, Verify
from ..ops.kernels import Kernels
from .inputs import DecodeInputs, PrefillInputs, VerifyInputs
from .memory import StepMemory


@dataclass(slots=True)
class GraphPrefill(Mixing):
    """One row of many tokens, laid out by whole blocks: `lead` padded tokens, the row's own, padding."""

    memory: StepMemory
    step: PrefillInputs
    kernels: Kernels

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
    def span(self) -> Span:
        """Where the row's tokens are and its states are kept."""
        step = self.step
        return Span(
            self.lead, self.last + 1, step.starts == 0, step.sources, step.lanes, step.commit_at, step.commit_to
        )

    def convolve(self, layer: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y, self.memory.window[layer] = self.kernels.conv_prefill(x, weight, self.memory.window[layer], self.span)
        return y

    def delta_rule(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        bank = self.memory.recurrent[layer]
        out, self.memory.recurrent[layer] = self.kernels.delta_rule_prefill(q, k, v, g, beta, bank, self.span)
        return out

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        table, active = self.step.table, self.step.tokens.shape[1] // BLOCK_SIZE
        keys, values = self.memory.kv[layer]
        run = block_of(self.step.starts) + torch.arange(active, device=table.device)
        blocks = table[0].index_select(0, run)
        own_keys, own_values = (whole_blocks(cache, x[0], blocks, self.lead) for cache, x in ((keys, k), (values, v)))
        # Written first and read after, so that a graph never needs the old cache beside the new one.
        cache = write_blocks(keys, own_keys, blocks), write_blocks(values, own_values, blocks)
        self.memory.kv[layer] = cache
        if q.shape[1] == 1:  # the last token alone: like a decoded one, it finds all others in the cache
            own = select_tokens(k, self.last), select_tokens(v, self.last)
            return self.kernels.attend(q, *own, cache, table, self.step.starts + self.step.lengths - 1)
        before = table[:, : table.shape[1] - active]
        first = self.step.starts - self.lead
        return self.kernels.attend(q, own_keys.unsqueeze(0), own_values.unsqueeze(0), cache, before, first)


@dataclass(slots=True)
class GraphDecode(Mixing):
    """Rows of one token: tensors are [batch, 1, ...]. A padded row starts at 0 and belongs to nobody."""

    memory: StepMemory
    step: DecodeInputs
    kernels: Kernels

    @property
    def positions(self) -> torch.Tensor:
        """[batch, 1]."""
        return self.step.starts.view(-1, 1)

    @property
    def batch(self) -> Batch:
        """Where the rows' states are kept."""
        step = self.step
        return Batch(step.starts == 0, step.sources, step.lanes, step.commit_at, step.commit_to)

    def convolve(self, layer: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y, self.memory.window[layer] = self.kernels.conv_decode(x, weight, self.memory.window[layer], self.batch)
        return y

    def delta_rule(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        bank = self.memory.recurrent[layer]
        out, self.memory.recurrent[layer] = self.kernels.delta_rule_decode(q, k, v, g, beta, bank, self.batch)
        return out

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        table, starts = self.step.table, self.step.starts
        keys, values = self.memory.kv[layer]
        block = table.gather(1, block_of(starts).long().view(-1, 1))[:, 0]
        index = block * BLOCK_SIZE + offset_of(starts)
        cache = write_tokens(keys, k[:, 0], index), write_tokens(values, v[:, 0], index)
        self.memory.kv[layer] = cache
        return self.kernels.attend(q, k, v, cache, table, starts)


@dataclass(slots=True)
class GraphVerify(Mixing):
    """Rows of a certain token and drafts: tensors are [batch, 1 + drafts, ...]. What is padding goes to scratch.

    The states that the lanes are left with hold the certain tokens; drafts change nothing but what is pending.
    """

    memory: StepMemory
    step: VerifyInputs
    kernels: Kernels

    @property
    def places(self) -> torch.Tensor:
        """int32 [1, 1 + drafts]."""
        tokens = self.step.tokens
        return torch.arange(tokens.shape[1], dtype=torch.int32, device=tokens.device).view(1, -1)

    @property
    def positions(self) -> torch.Tensor:
        """[batch, 1 + drafts]."""
        return self.step.starts.view(-1, 1) + self.places

    @property
    def rows(self) -> Verify:
        """Where the rows' states are kept, and which drafts they take in."""
        step = self.step
        return Verify(
            step.starts == 0,
            step.sources,
            step.lanes,
            step.accepted,
            step.commit_at,
            step.commit_after,
            step.commit_to,
        )

    def convolve(self, layer: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        memory = self.memory
        y, memory.window[layer], memory.inputs[layer] = self.kernels.conv_verify(
            x, weight, memory.window[layer], memory.inputs[layer], self.rows
        )
        return y

    def delta_rule(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        memory = self.memory
        out, memory.recurrent[layer], memory.factors[layer] = self.kernels.delta_rule_verify(
            q, k, v, g, beta, memory.recurrent[layer], memory.factors[layer], self.rows
        )
        return out

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        table, positions = self.step.table, self.positions
        keys, values = self.memory.kv[layer]
        # Padding may lie past the end of the table, and must not be written to a block of the row.
        block = table.gather(1, block_of(positions).clamp(max=table.shape[1] - 1).long())
        real = self.places < self.step.lengths.view(-1, 1)
        index = (block * BLOCK_SIZE + offset_of(positions)).masked_fill(~real, 0).view(-1)
        cache = write_tokens(keys, k.flatten(0, 1), index), write_tokens(values, v.flatten(0, 1), index)
        self.memory.kv[layer] = cache
        return self.kernels.attend(q, k, v, cache, table, self.step.starts)
