"""Paged attention against plain softmax attention over the gathered sequence."""

from __future__ import annotations

import pytest
import torch

from qwen36_neuron.ops.attention import PagedRow, attend, write_kv


def naive(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: int) -> torch.Tensor:
    """fp64 causal attention of queries start .. over all keys; [tokens, heads, dim]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) * q.shape[-1] ** -0.5
    after = torch.arange(k.shape[0])[None, :] > torch.arange(start, start + q.shape[0])[:, None]
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(after, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("blocks", [(1, 2, 3, 4), (4, 2, 7, 1)], ids=["neighbours", "scattered"])
@pytest.mark.parametrize("cuts", [(200,), (1, 199), (63, 137), (64, 136), (65, 1, 134), (199, 1)])
@pytest.mark.parametrize(("query_heads", "kv_heads"), [(4, 2), (6, 1), (2, 2)])
def test_cut_prefill_and_single_tokens(
    blocks: tuple[int, ...], cuts: tuple[int, ...], query_heads: int, kv_heads: int
) -> None:
    q, k, v = (torch.randn(200, heads, 64) for heads in (query_heads, kv_heads, kv_heads))
    cache = (torch.full((8 * 64, kv_heads, 64), torch.nan), torch.full((8 * 64, kv_heads, 64), torch.nan))
    start = 0
    for tokens in cuts:
        end = start + tokens
        row = PagedRow.of(blocks, start, end)
        assert isinstance(row.index, slice) == (blocks == (1, 2, 3, 4) or end <= 64)
        write_kv(cache, k[start:end], v[start:end], row)
        out = attend(q[start:end], cache, row)
        torch.testing.assert_close(out.double(), naive(q[start:end], k[:end], v[:end], start), rtol=0, atol=2e-6)
        start = end
    table = torch.tensor(blocks)
    stored = cache[0].view(8, 64, kv_heads, 64)[table].flatten(0, 1)[:200]
    assert torch.equal(stored, k)
    others = [block for block in range(8) if block not in blocks]
    assert cache[0].view(8, 64, -1)[others].isnan().all(), "wrote outside the row's blocks"
