"""Attention of a compiled graph over long prefixes, a segment of blocks at a time, so that no more scores are held.

A segment's softmax is brought in line with what was summed before it (online softmax), so the result is that of all
scores at once up to rounding: 1e-6 in fp32; in bfloat16 each segment's sum is rounded once, by 2^-9 of the sum.
"""

from __future__ import annotations

import torch

from ...config import BLOCK_SIZE
from .static import MASKED, block_attention, gather_blocks

MOST_SCORES = 1 << 27
"""Scores that a graph holds at once, fp32 and their weights beside them: 0.75 GiB with weights in bfloat16."""

MOST_GATHERED = 1 << 28
"""Numbers of gathered keys, and as many of values: 1 GiB of both in bfloat16."""


def segment_blocks(blocks: int, batch: int, tokens: int, query_heads: int, kv_heads: int, head_dim: int) -> int:
    """Blocks of a segment, of a table of `blocks`: segments are as long as they may be, and of equal lengths.

    Args:
        batch, tokens: rows, and new tokens of each; heads are those of a rank.
    """
    scores = batch * tokens * query_heads * BLOCK_SIZE
    gathered = batch * kv_heads * head_dim * BLOCK_SIZE
    most = max(1, min(MOST_SCORES // scores, MOST_GATHERED // gathered))
    segments = -(-blocks // most)
    return -(-blocks // segments) if segments else 0


def segmented_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    table: torch.Tensor,
    held: torch.Tensor,
    begin: int = 0,
    segment: int | None = None,
) -> torch.Tensor:
    """Causal attention of tokens over themselves and over `held` paged tokens before all of them.

    Args:
        q: [batch, tokens, query_heads, head_dim]; k, v: [batch, tokens, kv_heads, head_dim].
        cache: (keys, values), each [blocks, BLOCK_SIZE, kv_heads, head_dim].
        table: int [batch, n], blocks of positions 0, 1, ...; n may be 0.
        held, begin: as in `block_attention`.
        segment: blocks of a segment; by default what `segment_blocks` says.
    Returns:
        [batch, tokens, query_heads, head_dim].
    """
    batch, tokens, query_heads, head_dim = q.shape
    blocks, kv_heads = table.shape[1], k.shape[2]
    size = segment_blocks(blocks, batch, tokens, query_heads, kv_heads, head_dim) if segment is None else segment

    def gathered(first: int) -> tuple[torch.Tensor, torch.Tensor]:
        part = table[:, first : first + size]
        return gather_blocks(cache[0], part).to(q.dtype), gather_blocks(cache[1], part).to(q.dtype)

    if blocks <= size:
        return block_attention(q, k, v, gathered(0) if blocks else None, held, begin)
    group = query_heads // kv_heads
    queries = q.view(batch, tokens, kv_heads, group, head_dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
    place = torch.arange(tokens, device=q.device)
    causal = (place[:, None] >= place).repeat(group, 1).view(1, 1, group * tokens, tokens)
    summed = _Sum.of(queries, k, v, causal)
    for first in range(0, blocks, size):
        keys, values = gathered(first)
        position = first * BLOCK_SIZE + torch.arange(keys.shape[1], device=q.device)
        there = position < held.view(-1, 1)
        there = there & (position >= begin) if begin and not first else there
        summed = summed.and_of(queries, keys, values, there.view(batch, 1, 1, -1))
    out = (summed.values / summed.total).to(v.dtype).unflatten(2, (group, tokens))
    return out.permute(0, 3, 1, 2, 4).reshape(batch, tokens, query_heads, head_dim)


class _Sum:
    """Values weighed by softmax numerators, and the sum of these, relative to the largest score.

    Attributes:
        values: fp32 [batch, kv_heads, queries, head_dim]; total, peak: fp32 [batch, kv_heads, queries, 1].
    """

    def __init__(self, values: torch.Tensor, total: torch.Tensor, peak: torch.Tensor) -> None:
        self.values, self.total, self.peak = values, total, peak

    @classmethod
    def of(cls, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, keep: torch.Tensor) -> _Sum:
        """Of the first keys, of which every query keeps at least one."""
        scores = _scores(queries, keys, keep)
        peak = scores.amax(-1, keepdim=True)
        return cls(*_weighed(scores, peak, values), peak)

    def and_of(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, keep: torch.Tensor) -> _Sum:
        """With further keys, of which a query may keep none."""
        scores = _scores(queries, keys, keep)
        peak = torch.maximum(self.peak, scores.amax(-1, keepdim=True))
        fade = torch.exp(self.peak - peak)
        found, total = _weighed(scores, peak, values)
        return _Sum(self.values * fade + found, self.total * fade + total, peak)


def _scores(queries: torch.Tensor, keys: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """fp32 [batch, kv_heads, queries, keys]; keep spreads over it."""
    found = (queries @ keys.permute(0, 2, 3, 1)).float() * queries.shape[-1] ** -0.5
    return found.masked_fill(~keep, MASKED)


def _weighed(scores: torch.Tensor, peak: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weights = torch.exp(scores - peak)
    return (weights.to(values.dtype) @ values.permute(0, 2, 1, 3)).float(), weights.sum(-1, keepdim=True)
