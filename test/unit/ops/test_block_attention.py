"""The static form of paged attention against the form that the CPU runs, which reads rows where they are."""

from __future__ import annotations

import pytest
import torch

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.ops.attention import (
    PagedRow,
    attend,
    block_attention,
    block_of,
    gather_blocks,
    offset_of,
    whole_blocks,
    write_blocks,
    write_kv,
    write_tokens,
)

BLOCKS, KV_HEADS, QUERY_HEADS, DIM = 12, 2, 6, 32


@pytest.mark.parametrize(("start", "tokens"), [(0, 1), (0, 128), (0, 100), (64, 40), (70, 58), (127, 1), (130, 90)])
def test_a_chunk_after_a_prefix(start: int, tokens: int) -> None:
    """Any place in a block; the cache holds large values where it holds nothing of the row."""
    torch.manual_seed(start + tokens)
    q = torch.randn(tokens, QUERY_HEADS, DIM)
    k, v = torch.randn(2, tokens, KV_HEADS, DIM)
    caches = tuple(torch.full((BLOCKS * BLOCK_SIZE, KV_HEADS, DIM), 40.0) for _ in range(2))
    table = (7, 2, 9, 4)
    prior = torch.randn(2, start, KV_HEADS, DIM)
    if start:
        write_kv((caches[0], caches[1]), prior[0], prior[1], PagedRow.of(table, 0, start))
    static = [cache.view(BLOCKS, BLOCK_SIZE, KV_HEADS, DIM).clone() for cache in caches]
    kept = [cache.clone() for cache in static]

    row = PagedRow.of(table, start, start + tokens)
    write_kv((caches[0], caches[1]), k, v, row)
    expected = attend(q, (caches[0], caches[1]), row)

    lead, active = start % BLOCK_SIZE, 128
    needed = -(-(start + tokens) // BLOCK_SIZE)
    blocks = torch.zeros(1, 2 + 4, dtype=torch.int32)
    blocks[0, :needed] = torch.tensor(table[:needed])

    def laid_out(x: torch.Tensor) -> torch.Tensor:
        padded = torch.full((1, active + BLOCK_SIZE, *x.shape[1:]), 3.0)
        padded[0, lead : lead + tokens] = x
        return padded

    first = start // BLOCK_SIZE
    run, leads = blocks[0, first : first + 3], torch.tensor([lead])
    own = [whole_blocks(cache, laid_out(new)[0], run, leads) for cache, new in zip(static, (k, v), strict=True)]
    before = blocks[:, :2]
    gathered = (gather_blocks(static[0], before), gather_blocks(static[1], before))
    held = torch.tensor([first * BLOCK_SIZE])
    actual = block_attention(laid_out(q), own[0].unsqueeze(0), own[1].unsqueeze(0), gathered, held)
    assert (actual[0, lead : lead + tokens] - expected).abs().max() <= 2e-6
    assert actual.isfinite().all()

    for cache, new, reference, old in zip(static, own, caches, kept, strict=True):
        after = write_blocks(cache, new, run)
        assert torch.equal(cache, old), "the cache that was given is changed"
        flat = after.view(-1, KV_HEADS, DIM)
        assert torch.equal(flat[row.index], reference[row.index])
        for block in set(range(1, BLOCKS)) - set(table[:needed]):
            assert torch.equal(after[block], old[block])


def test_single_tokens() -> None:
    torch.manual_seed(0)
    starts = torch.tensor([0, 63, 64, 200], dtype=torch.int32)
    q = torch.randn(4, 1, QUERY_HEADS, DIM)
    k, v = torch.randn(2, 4, 1, KV_HEADS, DIM)
    caches = torch.randn(2, BLOCKS, BLOCK_SIZE, KV_HEADS, DIM)
    table = torch.tensor([[1, 0, 0, 0], [2, 0, 0, 0], [3, 4, 0, 0], [5, 6, 7, 8]], dtype=torch.int32)
    slots = table.gather(1, block_of(starts).long().view(-1, 1))[:, 0] * BLOCK_SIZE + offset_of(starts)
    assert slots.tolist() == [64, 2 * 64 + 63, 4 * 64, 8 * 64 + 8]
    gathered = (gather_blocks(caches[0], table), gather_blocks(caches[1], table))
    actual = block_attention(q, k, v, gathered, starts)
    written = [write_tokens(cache, new[:, 0], slots) for cache, new in zip(caches, (k, v), strict=True)]
    for index, start in enumerate(starts.tolist()):
        row = PagedRow.of([block for block in table[index].tolist() if block], start, start + 1)
        flat = (written[0].view(-1, KV_HEADS, DIM), written[1].view(-1, KV_HEADS, DIM))
        assert (actual[index] - attend(q[index], flat, row)).abs().max() <= 2e-6


def test_nothing_to_gather() -> None:
    torch.manual_seed(1)
    q = torch.randn(1, 64, QUERY_HEADS, DIM)
    k, v = torch.randn(2, 1, 64, KV_HEADS, DIM)
    zero = torch.zeros(1, dtype=torch.int32)
    none = block_attention(q, k, v, None, zero)
    some = torch.randn(2, 1, 64, KV_HEADS, DIM)
    assert (none - block_attention(q, k, v, (some[0], some[1]), zero)).abs().max() <= 1e-6


@pytest.mark.parametrize("position", [0, 1, 63, 64, 65, 131071, 262143])
def test_blocks_by_shift_and_mask(position: int) -> None:
    at = torch.tensor([position], dtype=torch.int32)
    assert (int(block_of(at)), int(offset_of(at))) == divmod(position, BLOCK_SIZE)
