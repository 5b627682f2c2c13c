"""Attention over a paged prefix against fp64 and the twin: boundary lengths, shuffled blocks, large scores."""

import numpy as np
import pytest
import torch

from nki_kernels.paged_attention import paged_attention
from nki_kernels.paged_attention_torch import paged_attention_torch

BARS = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def turned_by_tensor_engine(*args, **more):
    return paged_attention(*args, turns_by_dma=False, **more)


FORMS = [paged_attention, paged_attention[2], turned_by_tensor_engine, paged_attention_torch]
NAMES = ["kernel", "two cores", "turned by TensorE", "twin"]


def inputs(tokens, held, heads, key_heads, blocks, dtype, size=1.0):
    """A batch with one sequence for each of `held`; blocks of the cache in no order, the unused ones large."""
    rng = torch.Generator().manual_seed(tokens + sum(held))
    batch, total = len(held), len(held) * blocks + 1
    q = size * torch.randn(batch, tokens, heads, 256, generator=rng)
    k, v = (torch.randn(batch, tokens, key_heads, 256, generator=rng) for _ in range(2))
    caches = [torch.randn(total, 64, key_heads, 256, generator=rng) for _ in range(2)]
    table = torch.randperm(total, generator=rng)[: batch * blocks].view(batch, blocks).int()
    for b, n in enumerate(held):
        for j in range(blocks):
            if (j + 1) * 64 > n:
                for cache in caches:
                    cache[table[b, j], max(0, n - j * 64) :] = 300.0
    return [x.to(dtype) for x in (q, k, v, *caches)] + [table, torch.tensor([held], dtype=torch.int32)]


def exact(q, k, v, k_cache, v_cache, table, start):
    """fp64, one query at a time."""
    out = np.zeros(q.shape)
    for b, held in enumerate(start[0].tolist()):
        keys, values = (
            torch.cat((cache[table[b].long()].flatten(0, 1)[:held].to(new.dtype), new[b])).double().numpy()
            for cache, new in ((k_cache, k), (v_cache, v))
        )
        share = q.shape[2] // keys.shape[1]
        for i in range(q.shape[1]):
            for h in range(q.shape[2]):
                s = keys[: held + i + 1, h // share] @ q[b, i, h].double().numpy() / 16
                p = np.exp(s - s.max())
                out[b, i, h] = p @ values[: held + i + 1, h // share] / p.sum()
    return out


def check(form, args, bar):
    want = exact(*args)
    got = form(*args).double().numpy()
    assert np.abs(got - want).max() <= bar * np.abs(want).max()


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize(("tokens", "held", "blocks"), [
    (1, [0, 1, 63, 64, 65, 130], 3), (4, [0, 191], 3), (64, [100], 2), (128, [0], 1), (256, [577], 10),
])  # fmt: skip
def test_lengths(form, dtype, tokens, held, blocks):
    check(form, inputs(tokens, held, 2, 1, blocks, dtype), BARS[dtype])


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize(("tokens", "heads", "held", "blocks"), [
    (64, 6, [65], 3), (127, 8, [130], 4), (2, 6, [2048, 0, 2049, 2047], 33), (1, 2, [4159, 4095], 65),
])  # fmt: skip
def test_chunks_of_a_table_and_groups_of_rows(form, tokens, heads, held, blocks):
    check(form, inputs(tokens, held, heads, 1, blocks, torch.bfloat16), 2e-2)


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("code", [torch.float8_e4m3fn, torch.uint8])
@pytest.mark.parametrize(("tokens", "held", "blocks"), [
    (1, [0, 1, 63, 64, 65, 130], 3), (4, [0, 191], 3), (128, [130], 3), (128, [0], 1),
])  # fmt: skip
def test_fp8_in_the_cache(form, dtype, code, tokens, held, blocks):
    """Every code that a Trn2 reads, of either type that its bytes come in; read exactly, whatever else is held."""
    args = inputs(tokens, held, 2, 1, blocks, dtype, size=1 / 64)  # keys are of up to 240
    for place in (3, 4):
        draw = torch.Generator().manual_seed(place)
        codes = torch.randint(0, 0x78, args[place].shape, generator=draw, dtype=torch.uint8)
        codes |= torch.randint(0, 2, codes.shape, generator=draw, dtype=torch.uint8) << 7
        args[place] = codes.view(torch.float8_e4m3fn)
    want = exact(*args)
    args[3:5] = [cache.view(code) for cache in args[3:5]]
    got = form(*args).double().numpy()
    assert np.abs(got - want).max() <= BARS[dtype] * np.abs(want).max()


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize("begin", [1, 64])
@pytest.mark.parametrize("tokens", [1, 3])
def test_places_that_hold_nothing(form, tokens, begin):
    """The first ones, whatever is in them: also where nothing else is held, and of a second chunk none."""
    args = inputs(tokens, [max(1, begin), begin + 1, 130, 2100], 4, 2, 34, torch.float32)
    want = torch.empty_like(args[0])
    for b, held in enumerate(args[6][0].tolist()):
        keys, values = (
            torch.cat((cache[args[5][b].long()].flatten(0, 1)[begin:held], new[b])).unsqueeze(0)
            for cache, new in ((args[3], args[1]), (args[4], args[2]))
        )
        alone = torch.zeros(1, 1, dtype=torch.int32)
        for i in range(tokens):  # over a sequence of its own that has none of the first places
            seen = held - begin + i + 1
            own = args[0][b : b + 1, i : i + 1].expand(-1, seen, -1, -1)
            none = torch.zeros(1, 64, 2, 256)
            whole = paged_attention_torch(own, keys[:, :seen], values[:, :seen], none, none, alone, alone)
            want[b, i] = whole[0, -1]
    for cache in args[3:5]:
        for b in range(4):
            cache[args[5][b, 0].long(), :begin] = 300.0
    got = form(*args, begin=begin)
    assert (got - want).abs().max() <= 2e-5 * want.abs().max()


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_the_maximum_of_a_later_chunk(form):
    """What was added up before fades to nothing; and the other way round."""
    args = inputs(1, [4200, 4200], 2, 1, 66, torch.float32)
    q, table = args[0], args[5]
    for b, position in enumerate((4100, 100)):
        args[3][table[b, position // 64].long(), position % 64] = 3 * q[b, 0, :1]
    check(form, args, 1e-4)


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_grouped_heads(form):
    check(form, inputs(5, [70], 6, 2, 2, torch.float32), 2e-5)
    check(form, inputs(128, [64], 6, 1, 1, torch.bfloat16), 2e-2)
    check(form, inputs(128, [150, 0, 192], 4, 2, 3, torch.float32), 2e-5)


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_scores_that_overflow_without_a_maximum(form):
    check(form, inputs(128, [64], 2, 1, 1, torch.float32, size=100.0), 1e-4)


@pytest.mark.parametrize(("tokens", "held", "heads", "key_heads", "blocks", "dtype"), [
    (640, [64], 1, 1, 1, torch.float32), (128, [4090], 1, 1, 64, torch.bfloat16), (512, [0], 1, 1, 70, torch.bfloat16),
    (256, [2500, 0], 2, 2, 40, torch.float32), (1152, [4100], 1, 1, 65, torch.bfloat16),
])  # fmt: skip
def test_sections_of_keys_and_groups_of_queries(tokens, held, heads, key_heads, blocks, dtype):
    """More than one of each, also sections of which nothing is held."""
    args = inputs(tokens, held, heads, key_heads, blocks, dtype)
    want = paged_attention_torch(*(x.double() if x.is_floating_point() else x for x in args))
    for form in (paged_attention, turned_by_tensor_engine):
        assert (form(*args) - want).abs().max() <= BARS[dtype] * want.abs().max()


@pytest.mark.parametrize("position", [100, 2100])
def test_the_maximum_of_a_prompt_in_either_section(position):
    """One key that all but fills the sum: what the other section adds fades to nothing."""
    args = inputs(128, [2400], 2, 1, 38, torch.float32)
    args[3][args[5][0, position // 64].long(), position % 64] = 3 * args[0][0, 5, :1]
    check(paged_attention, args, 1e-4)
