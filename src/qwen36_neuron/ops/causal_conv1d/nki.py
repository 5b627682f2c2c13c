"""The causal convolution on a device, by NKI kernels."""

from __future__ import annotations

import torch

from nki_kernels.causal_conv1d import causal_conv1d, causal_conv1d_step
from nki_kernels.state_copy import state_copy

from ...config import BLOCK_SIZE
from ..banks import (
    Batch,
    OutputAndBank,
    OutputAndBanks,
    Span,
    Verify,
    checkpoint_counts,
    row_entries,
    source_entries,
    target_entries,
    write_pending,
)
from ..launch import Launch
from .verify import causal_conv1d_verify


def causal_conv1d_nki(
    launch: Launch, x: torch.Tensor, weight: torch.Tensor, bank: torch.Tensor, span: Span
) -> OutputAndBank:
    """Whole blocks of one row; tensors as in `Kernels.conv_prefill`.

    The kernel returns the windows, which a second one copies to the bank.
    """
    window = bank.index_select(0, source_entries(span))[0]
    valid = torch.cat((span.first, span.end)).view(1, 2)
    ends = torch.cat((span.end, span.commit_at * BLOCK_SIZE)).view(1, -1)
    y, windows = launch(causal_conv1d, x[0], window, weight, valid, ends)
    rows = torch.arange(ends.shape[1], dtype=torch.int32, device=ends.device)
    pairs = torch.stack((rows, target_entries(bank, torch.cat((span.lane, span.commit_to)))))
    return y.unsqueeze(0), launch(state_copy, bank, windows, pairs)


def causal_conv1d_step_nki(
    launch: Launch, x: torch.Tensor, weight: torch.Tensor, bank: torch.Tensor, batch: Batch
) -> OutputAndBank:
    """One token a row; tensors as in `Kernels.conv_decode`."""
    sources = source_entries(batch).view(1, -1)
    y, bank = launch(causal_conv1d_step, x, bank, weight, sources, row_entries(bank, batch))
    return y, bank


def causal_conv1d_verify_nki(
    x: torch.Tensor, weight: torch.Tensor, bank: torch.Tensor, pending: torch.Tensor, rows: Verify
) -> OutputAndBanks:
    """A token and drafts a row; tensors as in `Kernels.conv_verify`. Plain operations; entry 0 stays zero."""
    windows, held = bank.index_select(0, source_entries(rows)), pending.index_select(0, rows.lane)
    y, left, kept = causal_conv1d_verify(x, windows, held, rows.accepted, checkpoint_counts(rows), weight)
    entries, states = torch.cat((rows.lane, rows.commit_to)), torch.cat((left, kept.index_select(0, rows.commit_at)))
    bank = bank.index_copy(0, entries.long(), states.masked_fill((entries == 0).view(-1, 1, 1), 0.0))
    return y, bank, write_pending(pending, rows.lane, x[:, 1:])
