"""The gated delta rule on a device: one NKI kernel a call, which reads and writes the bank of states itself."""

from __future__ import annotations

import torch

from nki_kernels.gated_delta_rule_decode import gated_delta_rule_decode
from nki_kernels.gated_delta_rule_prefill import gated_delta_rule_prefill

from ...config import BLOCK_SIZE
from ..banks import (
    Batch,
    OutputAndBank,
    OutputAndBanks,
    Span,
    Verify,
    checkpoint_counts,
    checkpoint_entries,
    row_entries,
    source_entries,
    target_entries,
    write_pending,
)
from ..launch import Launch
from .verify import gated_delta_rule_verify


def gated_delta_rule_prefill_nki(
    launch: Launch,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    bank: torch.Tensor,
    span: Span,
) -> OutputAndBank:
    """Whole blocks of one row; tensors as in `Kernels.delta_rule_prefill`."""
    chunks = q.shape[1] // BLOCK_SIZE
    after = torch.arange(1, chunks + 1, dtype=torch.int32, device=span.lane.device)
    entries = torch.cat((checkpoint_entries(bank, span, after), target_entries(bank, span.lane))).view(1, -1)
    state = bank.index_select(0, source_entries(span))[0]
    valid = torch.cat((span.first, span.end)).view(1, 2)
    out, bank = launch(
        gated_delta_rule_prefill,
        *(x[0] for x in (q, k, v, g, beta)),
        state,
        valid,
        bank,
        entries,
        boundaries=tuple(range(1, chunks + 1)),
    )
    return out.unsqueeze(0), bank


def gated_delta_rule_step_nki(
    launch: Launch,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    bank: torch.Tensor,
    batch: Batch,
) -> OutputAndBank:
    """One token a row; tensors as in `Kernels.delta_rule_decode`."""
    sources = source_entries(batch).view(1, -1)
    out, bank = launch(gated_delta_rule_decode, q, k, v, g, beta, bank, sources, row_entries(bank, batch))
    return out, bank


def gated_delta_rule_verify_nki(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    bank: torch.Tensor,
    pending: torch.Tensor,
    rows: Verify,
) -> OutputAndBanks:
    """A token and drafts a row; tensors as in `Kernels.delta_rule_verify`. Plain operations; entry 0 stays zero."""
    states, held = bank.index_select(0, source_entries(rows)), pending.index_select(0, rows.lane)
    after = checkpoint_counts(rows)
    out, left, kept, new = gated_delta_rule_verify(q, k, v, g, beta, states, held, rows.accepted, after)
    entries, states = torch.cat((rows.lane, rows.commit_to)), torch.cat((left, kept.index_select(0, rows.commit_at)))
    bank = bank.index_copy(0, entries.long(), states.masked_fill((entries == 0).view(-1, 1, 1, 1), 0.0))
    return out, bank, write_pending(pending, rows.lane, new)
