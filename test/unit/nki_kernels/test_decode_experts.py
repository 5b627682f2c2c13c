"""The decode step's mixture against its twin and its definition, on routing that is kind and on some that is not."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nki.collectives import ReplicaGroup

from nki_kernels import mixture_examples
from nki_kernels.decode_experts import decode_experts
from nki_kernels.decode_experts_torch import decode_experts_torch, pack_experts, pack_shared, unpack_experts
from nki_kernels.decode_mlp_torch import pack_gamma
from nki_kernels.decode_projection_torch import pack_columns
from nki_kernels.fp8_mlp_torch import decode_e4m3
from nki_kernels.interpreter import Target, compiling_for, profile, ranks
from nki_kernels.interpreter.target import SDKS
from qwen36_neuron.ops.moe import experts as plain_experts
from qwen36_neuron.ops.moe import route

HIDDEN = 256
BAR = 1e-2
"""Of the largest value: h is rounded to bfloat16 behind its weight here, before it in the definition."""


def numbers(random, codes, *shape):
    """bfloat16, or codes of float8_e4m3 below 16 with scales by channel, and what they are worth."""
    if not codes:
        weight = (0.06 * torch.randn(shape, generator=random)).to(torch.bfloat16)
        return weight, None, weight.float()
    weight = torch.randint(0, 0x58, shape, generator=random, dtype=torch.uint8)
    weight |= torch.randint(0, 2, shape, generator=random, dtype=torch.uint8) << 7
    scale = 0.005 + 0.005 * torch.rand(shape[:-1], generator=random)
    return weight, scale, decode_e4m3(weight) * scale.unsqueeze(-1)


def made(rows, count, inner, cores, codes, shared=64, seed=0):
    """Arguments but for x, and the block's definition of x: fp32."""
    random = torch.Generator().manual_seed(seed)
    parts = [numbers(random, codes, *shape) for shape in ((count, inner, HIDDEN),) * 2 + ((count, HIDDEN, inner),)]
    of_all = [numbers(random, codes, *shape) for shape in ((shared, HIDDEN),) * 2 + ((HIDDEN, shared),)]
    scales, all_scales = (tuple(p[1] for p in some) if codes else None for some in (parts, of_all))
    factor = 1 + 0.2 * torch.randn(HIDDEN, generator=random)
    router = (0.06 * torch.randn(count, HIDDEN, generator=random)).to(torch.bfloat16)
    gate = (0.06 * torch.randn(HIDDEN, generator=random)).to(torch.bfloat16)
    held = pack_experts(*(p[0] for p in parts), scales), pack_shared(*(p[0] for p in of_all), cores, all_scales)
    worth, of_shared = [p[2] for p in parts], [p[2] for p in of_all]

    def definition(x, top_k, renormalise, router=router):
        n = x * factor * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        n = n.to(torch.bfloat16).float()
        weights, chosen = route(n @ router.float().T, top_k, renormalise)
        out = plain_experts(n, torch.cat(worth[:2], dim=1), worth[2], weights, chosen)
        inner = F.silu(n @ of_shared[0].T) * (n @ of_shared[1].T)
        return out + torch.sigmoid(n @ gate.float())[:, None] * (inner @ of_shared[2].T)

    x = torch.randn(rows, HIDDEN, generator=random)
    return x, [pack_gamma(factor), pack_columns(router, 1), *held, pack_gamma(gate).to(torch.bfloat16)], definition


def error(y, expected):
    return ((y - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(
    ("rows", "count", "inner", "top_k", "renormalise"),
    [(1, 64, 128, 8, True), (1, 9, 32, 2, False), (2, 256, 32, 8, False), (5, 64, 128, 8, True), (7, 16, 256, 2, True),
     (9, 130, 64, 4, True), (40, 300, 32, 8, True)],
)  # fmt: skip
def test_against_twin_and_definition(rows, count, inner, top_k, renormalise, cores, codes):
    """Experts in number beside, at and past 128; channels of a part of a block, of one and of two."""
    x, held, definition = made(rows, count, inner, cores, codes)
    y = decode_experts[cores](x, *held, top_k, renormalise)
    assert y.shape == x.shape
    assert error(y - x, decode_experts_torch(x, *held, top_k, renormalise) - x) <= BAR
    assert error(y - x, definition(x, top_k, renormalise)) <= BAR


@pytest.mark.parametrize("codes", [False, True])
def test_routing_that_is_hostile(codes):
    """All logits alike; two kinds of experts; one expert far above all; every row has the same."""
    x, held, definition = made(6, 64, 32, 2, codes)
    kinds = torch.full((64, HIDDEN), 0.25), 0.25 * (torch.arange(64) % 3 == 0).float()[:, None].expand(64, HIDDEN)
    for router in kinds:
        held[1] = pack_columns(router.to(torch.bfloat16), 1)
        y = decode_experts[2](x, *held)
        assert error(y - x, decode_experts_torch(x, *held) - x) <= BAR  # the lower numbers, as its search has it
    high = torch.zeros(64, HIDDEN, dtype=torch.bfloat16)
    high[37] = 4.0
    held[1], ones = pack_columns(high, 1), torch.ones(6, HIDDEN)
    for renormalise in (True, False):
        y = decode_experts[2](ones, *held, 8, renormalise)
        assert error(y - ones, definition(ones, 8, renormalise, high)) <= BAR
    held = made(6, 64, 32, 2, codes)[1]
    alike = x[:1].expand(6, -1).contiguous()
    assert error(decode_experts[2](alike, *held) - alike, definition(alike, 8, True)) <= BAR


def test_only_chosen_experts_are_read():
    """The others are NaN."""
    x, held, _ = made(5, 64, 32, 2, False)
    expected = decode_experts[2](x, *held)
    n = x * held[0].reshape(-1) * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
    logits = n.to(torch.bfloat16).float() @ held[1][0].float().reshape(HIDDEN, 64)
    chosen = torch.topk(logits, 8).indices.unique()
    held[2] = held[2].clone()
    held[2][[e for e in range(64) if e not in chosen]] = torch.nan
    assert len(chosen) < 64
    assert torch.equal(decode_experts[2](x, *held), expected)


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("dummy", [0.0, 3.0, 1e4, torch.nan])
def test_padding_rows_change_nothing_for_others(dummy, codes):
    """Whatever is in them: what rows are worth beside zeros, up to the order in which experts are added."""
    x, held, _ = made(4, 64, 32, 2, codes)
    x[2:] = 0.0
    expected = decode_experts[2](x, *held)[:2]
    x[2:] = dummy
    assert error(decode_experts[2](x, *held)[:2], expected) <= 1e-5


def test_a_row_is_the_same_alone_and_beside_others():
    """Up to the order in which its experts are added."""
    x, held, _ = made(5, 64, 32, 2, False)
    together = decode_experts[2](x, *held)
    for n in range(5):
        alone = decode_experts[2](x[n : n + 1].contiguous(), *held)
        assert error(alone, together[n : n + 1]) <= 1e-5


def test_ranks_sum_and_have_the_residual_once():
    """Four ranks, each with an eighth of the channels of every core: bfloat16 residuals, one rounding."""
    parts = [made(3, 16, 32, 2, False, seed=seed) for seed in range(4)]
    x, first = parts[0][0].to(torch.bfloat16), parts[0][1]
    calls = [(x, *first[:2], *held[2:4], first[4], 8, True) for _, held, _ in parts]
    groups = ReplicaGroup([[0, 1, 2, 3]])
    found = ranks(decode_experts[2])(*calls, replica_group=groups, ranks=4)
    expected = sum(decode_experts_torch(*call, ranks=4) for call in calls)
    assert all(torch.equal(y, found[0]) for y in found)
    assert found[0].dtype == torch.bfloat16
    assert error(found[0].float(), expected) <= BAR


def test_packing_is_undone():
    for codes in (False, True):
        _, held, _ = made(1, 9, 96, 2, codes, shared=192)
        for packed in held[2:4]:
            assert packed.shape[1] == 128
            gate, up, down = unpack_experts(packed, HIDDEN // 128)
            assert gate.shape == up.shape == (len(packed), 96, HIDDEN)
            assert down.shape == (len(packed), HIDDEN, 96)
    random = torch.Generator().manual_seed(1)
    gate, up, down = (torch.randn(shape, generator=random).to(torch.bfloat16) for shape in
                      ((3, 256, 384), (3, 256, 384), (3, 384, 256)))  # fmt: skip
    for found, given in zip(unpack_experts(pack_experts(gate, up, down), 3), (gate, up, down), strict=True):
        assert torch.equal(found, given.float())
    with pytest.raises(ValueError, match="intermediate size 40 must be a multiple of 32"):
        pack_experts(gate[:, :40], up[:, :40], down[:, :, :40])
    with pytest.raises(ValueError, match="uint8 codes have scales"):
        pack_experts(gate.view(torch.uint8), up.view(torch.uint8), down.view(torch.uint8))
    with pytest.raises(ValueError, match="multiple of 3"):
        pack_shared(gate[0], up[0], down[0], 3)


@pytest.mark.parametrize("lnc", [1, 2])
def test_every_release_takes_it(lnc):
    for sdk in (SDKS[0], SDKS[-1]):
        for rows, codes in ((1, True), (3, False), (40, True)):
            x, held, _ = made(rows, 64, 32, lnc, codes)
            with compiling_for(Target(sdk, lnc=lnc, checks="cautious", transposes_dma_on_tensor_engine=True)):
                decode_experts[lnc](x, *held)


def test_what_does_not_fit_is_refused():
    x, held, _ = made(1, 16, 32, 1, False)
    with pytest.raises(AssertionError, match="top_k is 9, must be 1 to 8"):
        decode_experts[1](x, *held, 9)
    with pytest.raises(AssertionError, match="the router has 16 experts, there are weights of 15"):
        decode_experts[1](x, *held[:2], held[2][:15], *held[3:])
    with pytest.raises(AssertionError, match="the shared expert is packed for 1 cores, launched on 2"):
        decode_experts[2](x, *held)
    with pytest.raises(AssertionError, match="3 ranks: a power of two"):
        decode_experts[1](x, *held, ranks=3)
    with pytest.raises(AssertionError, match="are no expert's of 2 lines"):
        decode_experts[1](x, *held[:2], held[2][:, :, :-32].contiguous(), *held[3:])
    with pytest.raises(AssertionError, match="65 rows, at most 64"):
        decode_experts[1](made(65, 16, 32, 1, False)[0], *held)


@pytest.mark.parametrize(("fp8", "most"), [(False, 55), (True, 49)])
def test_modelled_at_the_35bs_size(fp8, most):
    """Of bfloat16 its bytes take a core 27 us, the sum over ranks 15; FP8 is bound by TensorE's loads."""
    example = mixture_examples.experts(1, fp8)
    _, report = profile(example.kernel, *example.args, world=example.ranks, **example.kwargs)
    assert report.time_us < most
    assert np.isclose((report.hbm_read + report.hbm_write) / 2e6, 4.7 if fp8 else 8.1, atol=0.1)
