"""Every form of attention against its definition: paged, static, compiled, and the kernel in its interpreter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from attention_cases import EPS, SPAN_TOKENS, TASK_QUERIES, Rows, Shape
from bank_cases import TORCH, assert_close, int32, normal
from compiled_forms import needs_numba

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.ops.attention import (
    PagedRow,
    apply_rotary,
    attend,
    block_attention,
    block_of,
    gather_blocks,
    naive_attention,
    offset_of,
    whole_blocks,
    write_blocks,
    write_kv,
    write_tokens,
)

if TYPE_CHECKING:  # imported by the fixture: on a device it is AWS's own
    from qwen36_neuron.ops.nki_kernels import NkiKernels

BLOCKS, KV_HEADS, QUERY_HEADS, DIM = 12, 2, 6, 32


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
        exact = naive_attention(q[start:end].double(), k[:end].double(), v[:end].double(), start)
        torch.testing.assert_close(out.double(), exact, rtol=0, atol=2e-6)
        start = end
    table = torch.tensor(blocks)
    stored = cache[0].view(8, 64, kv_heads, 64)[table].flatten(0, 1)[:200]
    assert torch.equal(stored, k)
    others = [block for block in range(8) if block not in blocks]
    assert cache[0].view(8, 64, -1)[others].isnan().all(), "wrote outside the row's blocks"


@pytest.mark.parametrize(("start", "tokens"), [(0, 1), (0, 128), (0, 100), (64, 40), (70, 58), (127, 1), (130, 90)])
def test_static_form_of_a_chunk_after_a_prefix(start: int, tokens: int) -> None:
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
    exact = naive_attention(
        q.double(), *(torch.cat(parts).double() for parts in zip(prior, (k, v), strict=True)), start
    )

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
    assert (actual[0, lead : lead + tokens] - exact).abs().max() <= 2e-6
    assert actual.isfinite().all()

    for cache, new, reference, old in zip(static, own, caches, kept, strict=True):
        after = write_blocks(cache, new, run)
        assert torch.equal(cache, old), "the cache that was given is changed"
        flat = after.view(-1, KV_HEADS, DIM)
        assert torch.equal(flat[row.index], reference[row.index])
        for block in set(range(1, BLOCKS)) - set(table[:needed]):
            assert torch.equal(after[block], old[block])


def test_static_form_of_single_tokens() -> None:
    torch.manual_seed(0)
    starts = torch.tensor([0, 63, 64, 200], dtype=torch.int32)
    q = torch.randn(4, 1, QUERY_HEADS, DIM)
    k, v = torch.randn(2, 4, 1, KV_HEADS, DIM)
    caches = torch.randn(2, BLOCKS, BLOCK_SIZE, KV_HEADS, DIM)
    table = torch.tensor([[1, 0, 0, 0], [2, 0, 0, 0], [3, 4, 0, 0], [5, 6, 7, 8]], dtype=torch.int32)
    positions = table.gather(1, block_of(starts).long().view(-1, 1))[:, 0] * BLOCK_SIZE + offset_of(starts)
    assert positions.tolist() == [64, 2 * 64 + 63, 4 * 64, 8 * 64 + 8]
    gathered = (gather_blocks(caches[0], table), gather_blocks(caches[1], table))
    actual = block_attention(q, k, v, gathered, starts)
    written = [write_tokens(cache, new[:, 0], positions) for cache, new in zip(caches, (k, v), strict=True)]
    for index, start in enumerate(starts.tolist()):
        row = PagedRow.of([block for block in table[index].tolist() if block], start, start + 1)
        flat = (written[0].view(-1, KV_HEADS, DIM), written[1].view(-1, KV_HEADS, DIM))
        assert (actual[index] - attend(q[index], flat, row)).abs().max() <= 2e-6


def test_static_form_of_a_cache_whose_first_place_is_empty() -> None:
    torch.manual_seed(2)
    q = torch.randn(2, 1, QUERY_HEADS, DIM)
    k, v = torch.randn(2, 2, 1, KV_HEADS, DIM)
    keys, values = torch.randn(2, 2, 128, KV_HEADS, DIM)
    held = torch.tensor([70, 1], dtype=torch.int32)
    keys[:, 0], values[:, 0] = 300.0, 300.0
    actual = block_attention(q, k, v, (keys, values), held, begin=1)
    expected = block_attention(q, k, v, (keys[:, 1:], values[:, 1:]), held - 1)
    assert (actual - expected).abs().max() <= 1e-6
    assert (actual[1, 0] - v[1, 0].repeat_interleave(QUERY_HEADS // KV_HEADS, 0)).abs().max() <= 1e-6


def test_static_form_with_nothing_to_gather() -> None:
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


@pytest.mark.parametrize(
    ("batch", "tokens", "blocks", "held"),
    [(1, 128, 0, [0]), (1, 256, 3, [128]), (1, 64, 2, [64]), (3, 1, 4, [0, 70, 255])],
    ids=["prompt", "prompt-after-two-blocks", "one-block", "single-tokens"],
)
def test_kernel(nki: NkiKernels, batch: int, tokens: int, blocks: int, held: list[int]) -> None:
    q, k, v = (normal(batch, tokens, heads, 256, seed=heads) for heads in (4, 2, 2))
    cache = normal(13, 64, 2, 256, seed=7), normal(13, 64, 2, 256, seed=8)
    table = torch.randperm(12, generator=torch.Generator().manual_seed(0))[: batch * blocks].view(batch, blocks) + 1
    arguments = (q, k, v, cache, table.to(torch.int32), int32(*held))
    actual = nki.attend(*arguments)
    assert_close(actual, TORCH.attend(*arguments), 5e-6)
    for row, start in enumerate(held):
        past = (half[table[row]].flatten(0, 1)[:start] for half in cache)
        keys, values = (torch.cat(parts).double() for parts in zip(past, (k[row], v[row]), strict=True))
        assert_close(actual[row], naive_attention(q[row].double(), keys, values, start), 5e-6)


def assert_right(rows: Rows, tolerance: float = 2e-5) -> None:
    """2e-5: scores of some ten, and sums of up to a thousand terms of size one, in fp32."""
    out = rows.run()
    for row, length in enumerate(rows.lengths):
        assert (out[row, :length] - rows.expected(row)).abs().max() <= tolerance
        assert (out[row, length:] == 0.0).all()


TOGETHER = TASK_QUERIES // 2  # tokens of a task


@needs_numba
@pytest.mark.parametrize("start", [0, 1, 63, 64, 65, SPAN_TOKENS - 1, SPAN_TOKENS, 200, 330])
@pytest.mark.parametrize("length", [1, 2, TOGETHER - 1, TOGETHER, TOGETHER + 1, 64, 129, 200])
def test_compiled_starts_and_lengths(start: int, length: int) -> None:
    assert_right(Rows(Shape(), [start], [length]))


@needs_numba
@pytest.mark.parametrize(
    ("start", "length"), [(0, 1), (0, 65), (63, 1), (64, 2), (65, 64), (SPAN_TOKENS - 1, 130), (330, 70)]
)
@pytest.mark.parametrize("shape", [Shape(), Shape(1, 3), Shape(2, 3, 256, 64)])
def test_compiled_form_over_fp8(shape: Shape, start: int, length: int) -> None:
    """Codes of values are exact; a key's, which is normed and rotated in fp32, may be the next where it is half-way."""
    rows = Rows(shape, [start, 0], [length, 3], seed=start, fp8=True)
    assert_right(rows)
    for row in range(2):
        new = rows.positions(row)[rows.starts[row] :]
        keys, values = (half[new].view(torch.uint8).int() for half in rows.cache)
        k, v = (codes.view(torch.uint8).int() for codes in rows.new_codes(row))
        assert torch.equal(values, v)
        assert (keys - k).abs().max() <= 1
        assert (keys != k).float().mean() <= 1e-3


@needs_numba
@pytest.mark.parametrize(
    "shape",
    [Shape(1, 1), Shape(1, 3), Shape(2, 6), Shape(4, 1), Shape(1, 70), Shape(2, 2, 20, 8), Shape(1, 2, 256, 64)],
)
def test_compiled_form_of_other_shapes(shape: Shape) -> None:
    """Queries that do not fill a task or a vector, more heads than a task has queries, heads that fit no tile."""
    assert_right(Rows(shape, [70], [100]))


@needs_numba
def test_compiled_rows_of_unequal_lengths() -> None:
    assert_right(Rows(Shape(), [0, 130, 64, 5], [100, 1, 33, 64]))


@needs_numba
def test_compiled_scores_far_apart() -> None:
    """A softmax that is all but one-hot, whose peak moves from block to block.

    1e-4: scores reach 300, whose last bit is 3e-5, and what is wrong in a score is wrong in its weight.
    """
    assert_right(Rows(Shape(), [100], [150], spread=6.0), tolerance=1e-4)


@needs_numba
def test_the_last_token_alone_gives_what_it_gives_among_others() -> None:
    rows = Rows(Shape(), [0, 130, 64], [100, 1, 33])
    alone = rows.run(last=True)
    for row in range(3):
        assert (alone[row, 0] - rows.expected(row)[-1]).abs().max() <= 2e-5


@needs_numba
def test_only_the_new_tokens_positions_are_written() -> None:
    rows = Rows(Shape(), [70, 3], [10, 64])
    before = [half.clone() for half in rows.cache]
    rows.run()
    new = torch.cat([rows.positions(row)[rows.starts[row] :] for row in range(2)])
    for half, old in zip(rows.cache, before, strict=True):
        changed = (half != old).flatten(1).any(1).nonzero().flatten()
        assert changed.tolist() == sorted(new.tolist())


def exact_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()


@needs_numba
@pytest.mark.parametrize(("query_heads", "kv_heads", "size"), [(4, 2, 256), (6, 1, 64), (2, 2, 40)])
def test_compiled_form_of_one_token_over_scattered_blocks(query_heads: int, kv_heads: int, size: int) -> None:
    """Lengths at a block's edge and one either side; other sequences' blocks and stale positions are not looked at."""
    from qwen36_neuron.ops.attention.numba_pages import Pages
    from qwen36_neuron.ops.attention.numba_step import attention_step

    ends, blocks = [1, 63, 64, 65, 200], 24
    batch, half = len(ends), 16
    qgkv = normal(batch, (2 * query_heads + 2 * kv_heads) * size)
    weights = 1 + 0.2 * normal(2, size, seed=1)
    angles = normal(batch, half, seed=2)
    cos, sin = angles.cos(), angles.sin()
    order = torch.randperm(blocks - 1, generator=torch.Generator().manual_seed(3)) + 1
    tables, caches = np.zeros((batch, 4), np.int32), torch.full((2, blocks * BLOCK_SIZE, kv_heads, size), torch.nan)
    past = normal(2, batch, 256, kv_heads, size, seed=4)
    for row, end in enumerate(ends):
        for index in range(-(-end // BLOCK_SIZE)):
            tables[row, index] = order[4 * row + index]
            first, count = int(tables[row, index]) * BLOCK_SIZE, min(BLOCK_SIZE, end - 1 - index * BLOCK_SIZE)
            at = slice(index * BLOCK_SIZE, index * BLOCK_SIZE + count)
            caches[:, first : first + count] = past[:, row, at]
    out = torch.empty(batch, query_heads * size)
    attention_step(
        qgkv.numpy(),
        *weights.numpy(),
        np.float32(EPS),
        cos.numpy(),
        sin.numpy(),
        Pages.of(*caches),
        tables,
        np.array(ends),
        out.numpy(),
    )
    parts = [heads * size for heads in (query_heads, query_heads, kv_heads, kv_heads)]
    for row, end in enumerate(ends):
        q, gate, k, v = (x.double().unflatten(0, (-1, size)) for x in qgkv[row].split(parts))
        tables_ = cos[row].double().view(1, 1, 1, -1), sin[row].double().view(1, 1, 1, -1)
        q, k = (
            apply_rotary(exact_norm(x, weight).view(1, 1, -1, size), *tables_)[0, 0]
            for x, weight in zip((q, k), weights, strict=True)
        )
        keys, values = (
            torch.cat((old[row, : end - 1].double(), new.unsqueeze(0))) for old, new in zip(past, (k, v), strict=True)
        )
        expected = naive_attention(q.unsqueeze(0), keys, values, end - 1)[0] * torch.sigmoid(gate)
        assert (out[row] - expected.flatten()).abs().max() <= 4e-6
        place = int(tables[row, (end - 1) // BLOCK_SIZE]) * BLOCK_SIZE + (end - 1) % BLOCK_SIZE
        assert (caches[0, place] - k).abs().max() <= 4e-6
        assert torch.equal(caches[1, place], v.float())
