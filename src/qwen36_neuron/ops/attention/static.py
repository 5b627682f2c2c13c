"""Grouped-query attention over paged keys and values with shapes fixed beforehand: what a compiled graph runs.

A graph cannot read a row where it is, as `paged` does on CPU. It gathers whole blocks by table, up to the
size it was compiled for, and masks what a row does not hold. The cache of a layer is [blocks, BLOCK_SIZE, kv_heads,
head_dim]. Nothing is written in place: new caches are returned, for the graph to alias with the old ones.
"""

from __future__ import annotations

import torch

from ...config import BLOCK_SIZE
from ..fp8 import replace_rows

BLOCK_BITS = BLOCK_SIZE.bit_length() - 1
MASKED = torch.finfo(torch.float32).min


def block_of(position: torch.Tensor) -> torch.Tensor:
    """Index of the block that holds each position. Shifts and masks: integer division is not exact on every device."""
    return torch.bitwise_right_shift(position, BLOCK_BITS)


def offset_of(position: torch.Tensor) -> torch.Tensor:
    """Place of each position in its block."""
    return torch.bitwise_and(position, BLOCK_SIZE - 1)


def gather_blocks(cache: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Tokens of the blocks of `table`, int [batch, blocks]: [batch, blocks * BLOCK_SIZE, kv_heads, head_dim]."""
    batch, blocks = table.shape
    return cache.index_select(0, table.reshape(-1)).view(batch, blocks * BLOCK_SIZE, *cache.shape[2:])


def whole_blocks(cache: torch.Tensor, new: torch.Tensor, blocks: torch.Tensor, lead: torch.Tensor) -> torch.Tensor:
    """One sequence's run of whole blocks: what the first block holds already, then the new tokens.

    Args:
        cache: [blocks, BLOCK_SIZE, kv_heads, head_dim].
        new: [n * BLOCK_SIZE, kv_heads, head_dim], laid out from the start of the first block.
        blocks: int [n].
        lead: int [1], tokens that the first block holds already; `new` has padding in their places.
    Returns:
        [n * BLOCK_SIZE, kv_heads, head_dim] of the type of `new`, in numbers that the cache's type has.
    """
    held = cache.index_select(0, blocks[:1])[0].to(new.dtype)
    keep = (torch.arange(BLOCK_SIZE, device=new.device) < lead).view(-1, 1, 1)
    first = torch.where(keep, held, new[:BLOCK_SIZE])
    return torch.cat((first, new[BLOCK_SIZE:]))


def write_blocks(cache: torch.Tensor, run: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """The cache with whole blocks replaced: run [n * BLOCK_SIZE, kv_heads, head_dim], blocks int [n].

    A block that is to be left alone is given as 0, the scratch block.
    """
    return replace_rows(cache, blocks.long(), run.view(-1, *cache.shape[1:]))


def write_tokens(cache: torch.Tensor, new: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The cache with one token a row replaced: new [batch, kv_heads, head_dim], positions int [batch].

    A position counts through the blocks: block * BLOCK_SIZE + offset.
    """
    flat = cache.view(-1, *cache.shape[2:])
    return replace_rows(flat, positions.long(), new).view(cache.shape)


def block_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    prior: tuple[torch.Tensor, torch.Tensor] | None,
    held: torch.Tensor,
    begin: int = 0,
) -> torch.Tensor:
    """Causal attention of tokens over themselves and over gathered tokens that come before all of them.

    Args:
        q: [batch, tokens, query_heads, head_dim]; query head h reads kv head h // (query_heads / kv_heads).
        k, v: [batch, tokens, kv_heads, head_dim].
        prior: (keys, values) [batch, gathered, kv_heads, head_dim] of positions 0, 1, ...; None to gather nothing.
        held: int [batch], how many of the gathered tokens a row holds; the rest is other sequences' or stale.
        begin: positions before it hold nothing either.
    Returns:
        [batch, tokens, query_heads, head_dim].
    """
    batch, tokens, query_heads, head_dim = q.shape
    kv_heads = k.shape[2]
    group = query_heads // kv_heads
    queries = (
        q.view(batch, tokens, kv_heads, group, head_dim).permute(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, head_dim)
    )

    def scores(keys: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """[batch, kv_heads, group, tokens, keys] fp32; `keep` is [batch, 1, 1, tokens or 1, keys]."""
        found = (queries @ keys.permute(0, 2, 3, 1)).float() * head_dim**-0.5
        return found.view(batch, kv_heads, group, tokens, -1).masked_fill(~keep, MASKED)

    place = torch.arange(tokens, device=q.device)
    parts = [scores(k, (place[:, None] >= place).view(1, 1, 1, tokens, tokens))]
    values = v
    if prior is not None:
        position = torch.arange(prior[0].shape[1], device=q.device)
        there = position < held.view(-1, 1)
        there = there & (position >= begin) if begin else there
        parts.insert(0, scores(prior[0], there.view(batch, 1, 1, 1, -1)))
        values = torch.cat((prior[1], v), dim=1)
    weights = torch.cat(parts, dim=-1).softmax(-1).to(v.dtype).view(batch, kv_heads, group * tokens, -1)
    out = (weights @ values.permute(0, 2, 1, 3)).view(batch, kv_heads, group, tokens, head_dim)
    return out.permute(0, 3, 1, 2, 4).reshape(batch, tokens, query_heads, head_dim)
