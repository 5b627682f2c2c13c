"""A prompt's routed experts against their twin and their definition, on routing that is kind and hostile."""

import numpy as np
import pytest
import torch

from nki_kernels import mixture_examples
from nki_kernels.decode_experts_torch import pack_experts
from nki_kernels.fp8_mlp_torch import decode_e4m3
from nki_kernels.interpreter import Target, compiling_for, profile
from nki_kernels.interpreter.target import SDKS
from nki_kernels.prefill_experts import prefill_experts
from nki_kernels.prefill_experts_torch import prefill_experts_torch
from qwen36_neuron.ops.moe import experts as plain_experts
from qwen36_neuron.ops.moe.blocks import Blocks

HIDDEN = 512
BAR = 1e-2
"""Of the largest value: h and what a choice counts for are rounded to bfloat16."""


def made(count, inner, codes, seed=0):
    """Packed weights of `count` experts, and what they are worth as the definition takes them."""
    random, parts = torch.Generator().manual_seed(seed), []
    for shape in ((count, inner, HIDDEN), (count, inner, HIDDEN), (count, HIDDEN, inner)):
        if codes:
            weight = torch.randint(0, 0x58, shape, generator=random, dtype=torch.uint8)
            weight |= torch.randint(0, 2, shape, generator=random, dtype=torch.uint8) << 7
            scale = 0.005 + 0.005 * torch.rand(shape[:-1], generator=random)
            parts.append((weight, scale, decode_e4m3(weight) * scale.unsqueeze(-1)))
        else:
            weight = (0.06 * torch.randn(shape, generator=random)).to(torch.bfloat16)
            parts.append((weight, None, weight.float()))
    gate, up, down = parts
    packed = pack_experts(gate[0], up[0], down[0], (gate[1], up[1], down[1]) if codes else None)
    return packed, torch.cat((gate[2], up[2]), dim=1), down[2]


def choices(tokens, count, top_k, kind="random"):
    """x, weights and chosen of each token."""
    random = torch.Generator().manual_seed(tokens)
    x, scores = (
        torch.randn(tokens, HIDDEN, generator=random).to(torch.bfloat16),
        torch.rand(tokens, count, generator=random),
    )
    if kind == "alike":
        scores = scores[:1].expand(tokens, -1)
    elif kind == "one takes all":
        scores[:, count // 2] += 10
    elif kind == "few":
        scores[:, top_k:] -= 10
    weights, chosen = torch.softmax(4 * scores, dim=-1).topk(top_k)
    return x, weights, chosen


def error(y, expected):
    return ((y - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("kind", ["random", "alike", "one takes all", "few"])
@pytest.mark.parametrize(
    ("tokens", "count", "inner", "top_k", "cores"),
    [(1, 16, 128, 8, 2), (63, 16, 32, 2, 1), (64, 16, 32, 2, 2), (65, 8, 64, 1, 2), (129, 16, 128, 4, 2),
     (40, 4, 256, 2, 1), (300, 8, 32, 8, 2)],
)  # fmt: skip
def test_against_twin_and_definition(tokens, count, inner, top_k, cores, kind, codes):
    """Blocks of one row to 128, tokens at their bounds and one either side; nobody is dropped, experts go unused."""
    packed, gate_up, down = made(count, inner, codes)
    x, weights, chosen = choices(tokens, count, top_k, kind)
    blocks = Blocks.of(weights, chosen, count)
    y, _ = prefill_experts[cores](x, packed, *blocks)
    assert y.dtype == torch.float32
    assert error(y, prefill_experts_torch(x, packed, *blocks)[0]) <= BAR
    assert error(y, plain_experts(x.float(), gate_up, down, weights, chosen)) <= BAR


def test_only_chosen_experts_are_read():
    """The others are NaN, and places of blocks that are not used are many."""
    packed, gate_up, down = made(32, 32, False)
    x, weights, chosen = choices(100, 32, 2, "few")
    packed[2:] = torch.nan
    blocks = Blocks.of(weights, chosen, 32)
    assert (blocks.experts == 32).sum() > 8
    y, _ = prefill_experts[2](x, packed, *blocks)
    assert error(y, plain_experts(x.float(), gate_up, down, weights, chosen)) <= BAR


def test_every_choice_has_one_row_and_padding_counts_nothing():
    for tokens, count, top_k, kind in ((1, 8, 8, "random"), (100, 16, 4, "random"), (257, 8, 2, "one takes all")):
        _, weights, chosen = choices(tokens, count, top_k, kind)
        blocks = Blocks.of(weights, chosen, count)
        size, n = blocks.tokens.shape
        places = blocks.places.long()
        assert len(places.unique()) == places.numel()
        assert torch.equal(blocks.experts[0].long()[places // size], chosen)
        assert torch.equal(blocks.tokens.T.flatten()[places], torch.arange(tokens).unsqueeze(1).expand(-1, top_k).int())
        assert torch.equal(blocks.shares.T.flatten()[places], weights)
        assert torch.isclose(blocks.shares.sum(), weights.sum())
        used = blocks.experts[0] < count
        assert used[: int(used.sum())].all()  # they come first
        assert n == blocks.experts.shape[1]


@pytest.mark.parametrize("lnc", [1, 2])
def test_every_release_takes_it(lnc):
    for sdk in (SDKS[0], SDKS[-1]):
        for codes in (False, True):
            x, weights, chosen = choices(40, 16, 2)
            with compiling_for(Target(sdk, lnc=lnc, checks="cautious", transposes_dma_on_tensor_engine=True)):
                prefill_experts[lnc](x, made(16, 32, codes)[0], *Blocks.of(weights, chosen, 16))


def test_what_does_not_fit_is_refused():
    packed = made(8, 512, False)[0]
    x, weights, chosen = choices(300, 8, 2)
    with pytest.raises(AssertionError, match="128 rows of 512 channels do not fit in a bank: give fewer"):
        prefill_experts[1](x, packed, *Blocks.of(weights, chosen, 8))
    x, weights, chosen = choices(4, 8, 2)
    with pytest.raises(AssertionError, match="x is float32, must be bfloat16"):
        prefill_experts[1](x.float(), packed, *Blocks.of(weights, chosen, 8))
    with pytest.raises(AssertionError, match="hidden size 256 is not a multiple of 512"):
        prefill_experts[1](x[:, :256].contiguous(), packed, *Blocks.of(weights, chosen, 8))


def test_modelled_a_block_takes_as_long_as_its_weights():
    """Of the 35B's sizes, with 16 experts of 256: 1.6 MB of weights and 0.3 of rows a block, at 305 bytes a ns."""
    example = mixture_examples.prompt_experts(32, fp8=False, size=32, count=16)
    (y, _), report = profile(example.kernel, *example.args)
    assert np.isfinite(np.asarray(y)).all()
    assert report.time_us < 150
