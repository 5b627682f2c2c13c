"""Attention a segment at a time against all scores at once and against its definition, with the edges of segments."""

from __future__ import annotations

import pytest
import torch

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.ops.attention import (
    PagedRow,
    attend,
    block_attention,
    gather_blocks,
    naive_attention,
    paged,
    segment_blocks,
    segmented_attention,
    segments,
    write_kv,
)

BLOCKS, KV_HEADS, QUERY_HEADS, DIM = 14, 2, 6, 32
TABLE = [7, 2, 9, 4, 11, 1, 12, 3, 5, 10]
STALE = 40.0
"""What the cache holds in places that are no row's: it would be seen in every result."""


def case(helds: list[int], tokens: int, dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], torch.Tensor]:
    """q, k, v, keys' and values' cache and a table of rows that hold so many tokens; and the rows' results in fp64."""
    random = torch.Generator().manual_seed(sum(helds) + tokens)
    rows = len(helds)
    q = torch.randn(rows, tokens, QUERY_HEADS, DIM, generator=random).to(dtype)
    k, v = (torch.randn(rows, tokens, KV_HEADS, DIM, generator=random).to(dtype) for _ in "kv")
    cache = [torch.full((BLOCKS * BLOCK_SIZE, KV_HEADS, DIM), STALE, dtype=dtype) for _ in "kv"]
    table = torch.zeros(rows, len(TABLE), dtype=torch.int32)
    exact, free = [], list(TABLE)
    for row, held in enumerate(helds):
        used = -(-held // BLOCK_SIZE)
        own, free = free[:used], free[used:]
        table[row, :used] = torch.tensor(own, dtype=torch.int32)
        prior = [torch.randn(held, KV_HEADS, DIM, generator=random).to(dtype) for _ in "kv"]
        if held:
            write_kv((cache[0], cache[1]), *prior, PagedRow.of(own, 0, held))
        joined = [torch.cat((old, new[row])).double() for old, new in zip(prior, (k, v), strict=True)]
        exact.append(naive_attention(q[row].double(), *joined, held))
    caches = [half.view(BLOCKS, BLOCK_SIZE, KV_HEADS, DIM) for half in cache]
    return [q, k, v, *caches, table], torch.stack(exact)


@pytest.mark.parametrize("segment", [1, 3, 9, 10])
@pytest.mark.parametrize("held", [0, 1, 63, 64, 65, 191, 192, 193, 639, 640])
@pytest.mark.parametrize("tokens", [1, 3, 64])
def test_a_graphs_segments_add_up(segment: int, held: int, tokens: int) -> None:
    """Also where whole segments hold nothing of the row, and where the last one is shorter."""
    (q, k, v, keys, values, table), exact = case([held], tokens)
    found = segmented_attention(q, k, v, (keys, values), table, torch.tensor([held]), segment=segment)
    whole = block_attention(q, k, v, (gather_blocks(keys, table), gather_blocks(values, table)), torch.tensor([held]))
    assert (found - exact).abs().max() <= 2e-6
    assert (found - whole).abs().max() <= 2e-6


@pytest.mark.parametrize("begin", [0, 1])
def test_rows_of_different_lengths_and_a_padded_one(begin: int) -> None:
    helds = [300, 0, 65, 130]
    (q, k, v, keys, values, table), exact = case(helds, 2)
    held = torch.tensor(helds)
    found = segmented_attention(q, k, v, (keys, values), table, held, begin, segment=2)
    prior = gather_blocks(keys, table), gather_blocks(values, table)
    assert (found - block_attention(q, k, v, prior, held, begin)).abs().max() <= 2e-6
    if not begin:
        assert (found - exact).abs().max() <= 2e-6


def test_bfloat16_is_rounded_once_a_segment() -> None:
    (q, k, v, keys, values, table), exact = case([640], 16, torch.bfloat16)
    held = torch.tensor([640])
    errors = [
        (segmented_attention(q, k, v, (keys, values), table, held, segment=size).double() - exact).abs().max()
        for size in (10, 1)
    ]
    assert max(errors) <= 2**-7 * exact.abs().max()


def test_a_score_far_above_or_below_those_of_other_segments() -> None:
    """The largest score in the first, a middle and the last segment, 1e4 above all others."""
    for place in (5, 300, 639):
        (q, k, v, keys, values, table), _ = case([640], 1)
        block = TABLE[place // BLOCK_SIZE]
        keys[block, place % BLOCK_SIZE] = 1e3 * q[0, 0].view(KV_HEADS, -1, DIM)[:, 0]
        found = segmented_attention(q, k, v, (keys, values), table, torch.tensor([640]), segment=2)
        group = QUERY_HEADS // KV_HEADS
        assert torch.equal(found[0, 0, ::group], values[block, place % BLOCK_SIZE])
        assert found.isfinite().all()


def test_how_long_segments_are() -> None:
    """27B at 4 ranks, a table of a million positions: 512 new tokens of 6 heads, and 4 rows of one token."""
    for batch, tokens in ((1, 512), (1, 1024), (4, 1), (1, 1), (8, 4)):
        size = segment_blocks(16384, batch, tokens, 6, 1, 256)
        assert batch * tokens * 6 * size * BLOCK_SIZE <= segments.MOST_SCORES
        assert batch * 256 * size * BLOCK_SIZE <= segments.MOST_GATHERED
        assert 16384 % size in range(size - 16384 // size, size) or not 16384 % size, "segments of very unequal lengths"
    assert segment_blocks(2048, 8, 1, 6, 1, 256) == 2048, "what fits at once is not cut"
    assert segment_blocks(0, 1, 512, 6, 1, 256) == 0
    assert segment_blocks(16384, 1, 1 << 21, 32, 1, 256) == 1, "a block at least"


def test_no_more_scores_are_held_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "MOST_SCORES", 3 * BLOCK_SIZE * QUERY_HEADS * 5)
    held: list[int] = []
    whole = segments._scores

    def counted(*given: torch.Tensor) -> torch.Tensor:
        scores = whole(*given)
        held.append(scores.numel())
        return scores

    monkeypatch.setattr(segments, "_scores", counted)
    (q, k, v, keys, values, table), exact = case([640], 5)
    found = segmented_attention(q, k, v, (keys, values), table, torch.tensor([640]))
    assert (found - exact).abs().max() <= 2e-6
    assert len(held) == 1 + 4
    assert max(held) <= segments.MOST_SCORES


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged, "SEGMENT", 128)


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize("tokens", [1, 2, 70])
@pytest.mark.parametrize("start", [0, 126, 127, 128, 129, 255, 256, 257, 500])
def test_segments_on_a_cpu(tokens: int, start: int) -> None:
    """Against fp64; and bit for bit the same wherever the blocks lie."""
    random = torch.Generator().manual_seed(start + tokens)
    end, found = start + tokens, []
    q = torch.randn(tokens, QUERY_HEADS, DIM, generator=random)
    k, v = (torch.randn(end, KV_HEADS, DIM, generator=random) for _ in "kv")
    for table in (list(range(1, 11)), TABLE):
        cache = torch.full((2, BLOCKS * BLOCK_SIZE, KV_HEADS, DIM), STALE)
        write_kv((cache[0], cache[1]), k, v, PagedRow.of(table, 0, end))
        found.append(attend(q, (cache[0], cache[1]), PagedRow.of(table, start, end)))
    assert torch.equal(*found)
    assert (found[0] - naive_attention(q.double(), k.double(), v.double(), start)).abs().max() <= 2e-6
