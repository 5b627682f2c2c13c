"""The operations of `kernels` in plain torch: static shapes, everything gathered by index, nothing written in place."""

from __future__ import annotations

import torch

from ..config import BLOCK_SIZE
from .attention import segmented_attention
from .banks import Batch, OutputAndBank, OutputAndBanks, Span, Verify, checkpoint_counts, write_pending
from .causal_conv1d import causal_conv1d, causal_conv1d_verify, place_window, windows_at
from .gated_delta_rule import gated_delta_rule_boundaries, gated_delta_rule_step, gated_delta_rule_verify
from .norm import gated_rms_norm


def read_states(bank: torch.Tensor, entries: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
    """The rows' states: zero for a row that starts, whatever the entry holds, so that nothing stale is ever read."""
    return bank.index_select(0, entries).masked_fill(fresh.view(-1, *[1] * (bank.dim() - 1)), 0.0)


def write_states(bank: torch.Tensor, at: Span | Batch | Verify, states: torch.Tensor) -> torch.Tensor:
    """The bank with the given states written: those of the lanes, then those of the checkpoints."""
    return bank.index_copy(0, torch.cat((at.lane, at.commit_to)).long(), states)


class TorchKernels:
    """What a graph is without NKI."""

    def conv_prefill(self, x: torch.Tensor, weight: torch.Tensor, bank: torch.Tensor, span: Span) -> OutputAndBank:
        size = bank.shape[1]
        joined = place_window(x, read_states(bank, span.source, span.fresh), span.first)
        ends = torch.cat((span.end, span.commit_at * BLOCK_SIZE))
        bank = write_states(bank, span, windows_at(joined, ends, size))
        return causal_conv1d(joined[:, size:], joined[:, :size], weight), bank

    def conv_decode(self, x: torch.Tensor, weight: torch.Tensor, bank: torch.Tensor, batch: Batch) -> OutputAndBank:
        window = read_states(bank, batch.source, batch.fresh)
        after = torch.cat((window[:, 1:], x), dim=1)
        bank = write_states(bank, batch, torch.cat((after, after.index_select(0, batch.commit_at))))
        return causal_conv1d(x, window, weight), bank

    def conv_verify(
        self, x: torch.Tensor, weight: torch.Tensor, bank: torch.Tensor, pending: torch.Tensor, rows: Verify
    ) -> OutputAndBanks:
        windows, held = read_states(bank, rows.source, rows.fresh), pending.index_select(0, rows.lane)
        y, left, kept = causal_conv1d_verify(x, windows, held, rows.accepted, checkpoint_counts(rows), weight)
        bank = write_states(bank, rows, torch.cat((left, kept.index_select(0, rows.commit_at))))
        return y, bank, write_pending(pending, rows.lane, x[:, 1:])

    def delta_rule_prefill(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        bank: torch.Tensor,
        span: Span,
    ) -> OutputAndBank:
        place = torch.arange(g.shape[1], device=g.device).view(1, -1, 1)
        padding = (place < span.first) | (place >= span.end)
        g, beta = g.masked_fill(padding, 0.0), beta.masked_fill(padding, 0.0)
        out, states = gated_delta_rule_boundaries(q, k, v, g, beta, read_states(bank, span.source, span.fresh))
        # Padding changes nothing, so the state after the last chunk is the state after the last token.
        written = torch.cat((states[-1:], states.index_select(0, span.commit_at - 1)))
        return out, write_states(bank, span, written)

    def delta_rule_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        bank: torch.Tensor,
        batch: Batch,
    ) -> OutputAndBank:
        states = read_states(bank, batch.source, batch.fresh)  # a gathered copy, which the step may change
        out = gated_delta_rule_step(q[:, 0], k[:, 0], v[:, 0], g[:, 0], beta[:, 0], states)
        bank = write_states(bank, batch, torch.cat((states, states.index_select(0, batch.commit_at))))
        return out.unsqueeze(1), bank

    def delta_rule_verify(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        bank: torch.Tensor,
        pending: torch.Tensor,
        rows: Verify,
    ) -> OutputAndBanks:
        states, held = read_states(bank, rows.source, rows.fresh), pending.index_select(0, rows.lane)
        after = checkpoint_counts(rows)
        out, left, kept, new = gated_delta_rule_verify(q, k, v, g, beta, states, held, rows.accepted, after)
        bank = write_states(bank, rows, torch.cat((left, kept.index_select(0, rows.commit_at))))
        return out, bank, write_pending(pending, rows.lane, new)

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        table: torch.Tensor,
        held: torch.Tensor,
        begin: int = 0,
    ) -> torch.Tensor:
        return segmented_attention(q, k, v, cache, table, held, begin)

    def gated_norm(self, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return gated_rms_norm(x, gate, weight, eps)
