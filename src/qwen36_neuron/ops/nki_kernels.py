"""The operations of `kernels` by the NKI kernels: compiled into the graph on a device, run at once by the interpreter.

A kernel writes to the bank that it is given and returns it, which is what makes the two one memory on a device. What
padding and unused checkpoints would write goes past the last entry, where the kernels write nothing. So entry 0 stays
zero for good, and a row that starts its sequence reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from nki_kernels.causal_conv1d import causal_conv1d, causal_conv1d_step
from nki_kernels.fp8_mlp import COLUMNS, fp8_mlp
from nki_kernels.gated_delta_rule_decode import gated_delta_rule_decode
from nki_kernels.gated_delta_rule_prefill import gated_delta_rule_prefill
from nki_kernels.gated_rms_norm import gated_rms_norm
from nki_kernels.paged_attention import paged_attention
from nki_kernels.state_copy import state_copy

from ..config import BLOCK_SIZE
from .kernels import Batch, Kept, Span

MLP_TOKENS = COLUMNS
"""Tokens that the MLP kernel takes at most."""


def read_from(at: Span | Batch) -> torch.Tensor:
    """int32 [rows]: the entries that hold the rows' states."""
    return at.source.masked_fill(at.fresh, 0)


def write_to(bank: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """int32, `entries` with those that are nobody's past the last one of the bank."""
    return entries.masked_fill(entries == 0, bank.shape[0])


def checkpoint_of(bank: torch.Tensor, at: Span | Batch, places: torch.Tensor) -> torch.Tensor:
    """int32 [n]: the checkpoint to leave at each of the int32 `places`, or nobody's: which are wanted is an input."""
    wanted = at.commit_at.view(1, -1) == places.view(-1, 1)
    return write_to(bank, (wanted * at.commit_to).amax(1).to(torch.int32))


def row_places(bank: torch.Tensor, batch: Batch) -> torch.Tensor:
    """int32 [1, 2 * rows]: each row's lane, then its checkpoint."""
    rows = torch.arange(len(batch.lane), dtype=torch.int32, device=batch.lane.device)
    return torch.stack((write_to(bank, batch.lane), checkpoint_of(bank, batch, rows)), 1).view(1, -1)


@dataclass(frozen=True, slots=True)
class NkiKernels:
    """Each operation as one kernel; the windows of a prompt, which its kernel gives back, are then copied to the bank.

    Attributes:
        cores: physical cores that one logical core joins (LNC). Every kernel is launched on all of them: the compiler
            refuses any other number.
    """

    cores: int

    def launch(self, kernel: Any, *tensors: torch.Tensor | None, **constants: Any) -> Any:
        """Run, or put into the graph that is being traced."""
        on_cores: Callable[..., Any] = kernel[self.cores]
        return on_cores(*tensors, **constants)

    def conv_prefill(self, x: torch.Tensor, weight: torch.Tensor, bank: torch.Tensor, span: Span) -> Kept:
        window = bank.index_select(0, read_from(span))[0]
        valid = torch.cat((span.first, span.end)).view(1, 2)
        ends = torch.cat((span.end, span.commit_at * BLOCK_SIZE)).view(1, -1)
        y, windows = self.launch(causal_conv1d, x[0], window, weight, valid, ends)
        rows = torch.arange(ends.shape[1], dtype=torch.int32, device=ends.device)
        pairs = torch.stack((rows, write_to(bank, torch.cat((span.lane, span.commit_to)))))
        return y.unsqueeze(0), self.launch(state_copy, bank, windows, pairs)

    def conv_decode(self, x: torch.Tensor, weight: torch.Tensor, bank: torch.Tensor, batch: Batch) -> Kept:
        read = read_from(batch).view(1, -1)
        y, bank = self.launch(causal_conv1d_step, x, bank, weight, read, row_places(bank, batch))
        return y, bank

    def delta_rule_prefill(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        bank: torch.Tensor,
        span: Span,
    ) -> Kept:
        tokens = q.shape[1]
        chunks = tokens // BLOCK_SIZE
        after = torch.arange(1, chunks + 1, dtype=torch.int32, device=span.lane.device)
        slots = torch.cat((checkpoint_of(bank, span, after), write_to(bank, span.lane))).view(1, -1)
        state = bank.index_select(0, read_from(span))[0]
        valid = torch.cat((span.first, span.end)).view(1, 2)
        out, bank = self.launch(
            gated_delta_rule_prefill,
            *(x[0] for x in (q, k, v, g, beta)),
            state,
            valid,
            bank,
            slots,
            boundaries=tuple(range(1, chunks + 1)),
        )
        return out.unsqueeze(0), bank

    def delta_rule_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        bank: torch.Tensor,
        batch: Batch,
    ) -> Kept:
        read = read_from(batch).view(1, -1)
        out, bank = self.launch(gated_delta_rule_decode, q, k, v, g, beta, bank, read, row_places(bank, batch))
        return out, bank

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        table: torch.Tensor,
        held: torch.Tensor,
    ) -> torch.Tensor:
        # The kernel takes one block at least; of the scratch block no token is held.
        table = table if table.shape[1] else table.new_zeros(len(table), 1)
        out: torch.Tensor = self.launch(paged_attention, q, k, v, *cache, table, held.view(1, -1))
        return out

    def gated_norm(self, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        normed: torch.Tensor = self.launch(
            gated_rms_norm, x.flatten(0, 1), gate.flatten(0, 1), weight.view(1, -1), eps=eps
        )
        return normed.view(gate.shape)

    def mlp(self, x: torch.Tensor, codes: tuple[torch.Tensor, ...], scales: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """SwiGLU MLP with FP8 weights, of one rank.

        Args:
            x: bfloat16 [tokens, hidden], at most MLP_TOKENS.
            codes, scales: of gate, up and down, as `nki_kernels.fp8_mlp` takes them.
        Returns:
            fp32 [tokens, hidden]: the sum of what the cores give.
        """
        parts: torch.Tensor = self.launch(fp8_mlp, x, *codes, *scales)
        return parts.sum(0)
