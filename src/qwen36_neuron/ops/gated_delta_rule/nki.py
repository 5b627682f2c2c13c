"""The gated delta rule on a device: one NKI kernel a call, which reads and writes the bank of states itself."""

from __future__ import annotations

from functools import partial

import torch

from nki_kernels.delta_rule_relations import relations, sequences_at_once
from nki_kernels.gated_delta_rule_decode import gated_delta_rule_decode
from nki_kernels.gated_delta_rule_prefill import gated_delta_rule_prefill
from nki_kernels.gated_delta_rule_verify import gated_delta_rule_verify

from ...config import BLOCK_SIZE
from ..banks import (
    Batch,
    OutputAndBank,
    OutputAndBanks,
    Span,
    Verify,
    checkpoint_entries,
    row_entries,
    source_entries,
    target_entries,
)
from ..launch import Launch
from ..parts import Part, cut, pending_rows


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
    launch: Launch,
    cores: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    bank: torch.Tensor,
    pending: torch.Tensor,
    rows: Verify,
) -> OutputAndBanks:
    """A token and drafts a row on so many physical cores; tensors as in `Kernels.delta_rule_verify`."""
    tokens, heads, out = q.shape[1], v.shape[2] // cores, []
    key = "delta rule", len(bank), *pending.shape[:2], tokens, heads
    launches = rows.once(key, partial(_launches, tokens, heads, bank, pending, rows))
    for part, tables in launches:
        own = (x[part.first : part.last] for x in (q, k, v, g, beta))
        o, bank, pending = launch(gated_delta_rule_verify, *own, bank, pending, *tables)
        out.append(o)
    return torch.cat(out), bank, pending


def _launches(
    tokens: int, heads: int, bank: torch.Tensor, pending: torch.Tensor, rows: Verify
) -> list[tuple[Part, tuple[torch.Tensor, ...]]]:
    """Of each launch its rows, and `relations`, `places` and `held` of the kernel."""
    drafts = pending.shape[1]
    found: list[tuple[Part, tuple[torch.Tensor, ...]]] = []
    for part in cut(rows, lambda checks: sequences_at_once(tokens, drafts, checks, heads)):
        source, lane, accepted = (x.index_select(0, part.row) for x in (part.source, part.lane, part.accepted))
        table = relations(part.last - part.first, tokens, drafts, part.row, part.after > accepted)
        taken = torch.cat((part.accepted, torch.minimum(part.after, accepted)))
        held = pending_rows(torch.cat((part.lane, lane)), taken, drafts)
        written = target_entries(bank, torch.cat((part.lane, part.to))), target_entries(pending, part.lane)
        found.append((part, (table, torch.cat((part.source, source, *written)).view(1, -1), held)))
    return found
