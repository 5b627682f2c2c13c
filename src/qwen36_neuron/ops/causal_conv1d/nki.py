"""The causal convolution on a device, by NKI kernels."""

from __future__ import annotations

from functools import partial

import torch

from nki_kernels.causal_conv1d import causal_conv1d, causal_conv1d_step
from nki_kernels.causal_conv1d_relations import relations, sequences_at_once
from nki_kernels.causal_conv1d_verify import causal_conv1d_verify
from nki_kernels.state_copy import state_copy

from ...config import BLOCK_SIZE
from ..banks import (
    Batch,
    OutputAndBank,
    OutputAndBanks,
    Span,
    Verify,
    row_entries,
    source_entries,
    target_entries,
)
from ..launch import Launch
from ..parts import Part, cut, pending_rows


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
    launch: Launch, x: torch.Tensor, weight: torch.Tensor, bank: torch.Tensor, pending: torch.Tensor, rows: Verify
) -> OutputAndBanks:
    """A token and drafts a row; tensors as in `Kernels.conv_verify`."""
    key, out = ("convolution", len(bank), *pending.shape[:2], x.shape[1], x.dtype), []
    launches = rows.once(key, partial(_launches, x, bank, pending, rows))
    for part, tables in launches:
        own = x[part.first : part.last]
        y, bank, pending = launch(causal_conv1d_verify, own, bank, pending, weight, *tables)
        out.append(y)
    return torch.cat(out), bank, pending


def _launches(
    x: torch.Tensor, bank: torch.Tensor, pending: torch.Tensor, rows: Verify
) -> list[tuple[Part, tuple[torch.Tensor, ...]]]:
    """Of each launch its rows, and `relations`, `held` and `places` of the kernel."""
    tokens, past, drafts = x.shape[1], bank.shape[1], pending.shape[1]
    found: list[tuple[Part, tuple[torch.Tensor, ...]]] = []
    for part in cut(rows, lambda checks: sequences_at_once(tokens, drafts, checks)):
        table = relations(part.accepted, tokens, drafts, part.row, part.after).to(x.dtype)
        window = torch.arange(past, dtype=torch.int32, device=part.source.device)
        old = (part.source.view(-1, 1) * past + window).view(-1, 1)
        held = torch.cat((old, pending_rows(part.lane, part.accepted, drafts)))
        written = target_entries(bank, torch.cat((part.lane, part.to))), target_entries(pending, part.lane)
        found.append((part, (table, held, torch.cat(written).view(1, -1))))
    return found
