"""Grouped-query attention by its definition."""

from __future__ import annotations

import torch


def naive_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: int) -> torch.Tensor:
    """softmax(q k^T / sqrt(head_dim)) v, causal, in the type of its inputs: with fp64 the oracle of all other forms.

    Args:
        q: [tokens, query_heads, head_dim], of tokens start .. start + tokens - 1; query head h reads kv head
            h // (query_heads / kv_heads).
        k, v: [keys, kv_heads, head_dim], of tokens 0 .. keys - 1.
    Returns:
        [tokens, query_heads, head_dim].
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    later = torch.arange(k.shape[0])[None, :] > torch.arange(start, start + q.shape[0])[:, None]
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), v)
