"""The causal convolution on a device, by NKI kernels."""

from __future__ import annotations

import torch

from nki_kernels.causal_conv1d import causal_conv1d, causal_conv1d_step
from nki_kernels.state_copy import state_copy

from ...config import BLOCK_SIZE
from ..banks import Batch, OutputAndBank, Span, row_entries, source_entries, target_entries
from ..launch import Launch


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
