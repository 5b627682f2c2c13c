"""The decode step's router against its twin and fp64, on routers that are kind and on some that are not."""

import numpy as np
import pytest
import torch

from nki_kernels import mixture_examples
from nki_kernels.decode_mlp_torch import pack_gamma
from nki_kernels.decode_projection_torch import pack_columns
from nki_kernels.decode_router import decode_router
from nki_kernels.decode_router_torch import decode_router_torch
from nki_kernels.interpreter import Target, compiling_for, profile
from nki_kernels.interpreter.target import SDKS

EPS, HIDDEN = 1e-5, 256


def made(rows, experts, seed=0, scale=0.06):
    """Arguments, and logits in fp64."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(0, 1, (rows, HIDDEN)).astype(np.float32))
    factor = torch.from_numpy(rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32))
    weight = torch.from_numpy(rng.normal(0, scale, (experts, HIDDEN))).to(torch.bfloat16)
    n = x.double() * factor.double() * (x.double().square().mean(-1, keepdim=True) + EPS).rsqrt()
    return (x, pack_gamma(factor), pack_columns(weight, 1)), n @ weight.double().T


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(("rows", "experts", "top_k"), [(1, 256, 8), (5, 64, 8), (8, 8, 8), (33, 256, 2), (64, 512, 4)])
def test_against_twin_and_fp64(rows, experts, top_k, cores, renormalise):
    """What is chosen is the largest but for what rounding inputs to bfloat16 turns: 1 % of the largest logit."""
    args, logits = made(rows, experts)
    weights, chosen = decode_router[cores](*args, top_k, renormalise, EPS)
    assert (weights.dtype, chosen.dtype) == (torch.float32, torch.int32)
    assert weights.shape == chosen.shape == (rows, top_k)
    assert all(len(set(row)) == top_k for row in chosen.tolist())
    off = 1e-2 * logits.abs().max()
    ours, best = logits.gather(1, chosen.long()), logits.topk(top_k).values
    assert (ours >= best[:, -1:] - off).all()
    assert (ours - best).abs().max() <= off
    exact = torch.exp(ours - ours.amax(1, keepdim=True))
    total = exact.sum(1) if renormalise else torch.exp(logits - ours.amax(1, keepdim=True)).sum(1)
    assert (weights.double() - exact / total.unsqueeze(1)).abs().max() <= 2 * off
    twin, same = decode_router_torch(*args, top_k, renormalise, EPS)
    agreed = (same == chosen).all(1)
    assert agreed.float().mean() >= 0.9  # a rounding may turn a near tie
    assert (weights - twin)[agreed].abs().max() <= 5e-3
    if renormalise:
        assert (weights.sum(1) - 1).abs().max() <= 1e-6


@pytest.mark.parametrize("cores", [1, 2])
def test_equal_logits_are_given_in_order_of_experts(cores):
    """All alike, and two kinds: as the twin's stable sort has it."""
    args, _ = made(3, 64)
    for weight in (
        torch.full((64, HIDDEN), 0.25),
        0.25 * (torch.arange(64) % 3 == 0).float()[:, None].expand(64, HIDDEN),
    ):
        held = pack_columns(weight.to(torch.bfloat16), 1)
        weights, chosen = decode_router[cores](*args[:2], held, 8, True, EPS)
        twin, expected = decode_router_torch(*args[:2], held, 8, True, EPS)
        assert torch.equal(chosen, expected)
        assert torch.allclose(weights, torch.full_like(weights, 0.125), atol=1e-6)
        assert torch.allclose(weights, twin, atol=1e-6)


@pytest.mark.parametrize("renormalise", [True, False])
def test_one_expert_takes_all(renormalise):
    """Its logit is hundreds above the others, whose powers are zero: their weights are, and it has all of the rest."""
    args, _ = made(4, 64)
    x = torch.ones(4, HIDDEN)
    weight = torch.zeros(64, HIDDEN, dtype=torch.bfloat16)
    weight[37], weight[5] = 4.0, -4.0
    weights, chosen = decode_router[2](x, args[1], pack_columns(weight, 1), 8, renormalise, EPS)
    assert chosen[:, 0].tolist() == [37] * 4
    assert 5 not in chosen
    assert torch.equal(weights, torch.eye(8)[:1].expand(4, 8))


@pytest.mark.parametrize("lnc", [1, 2])
def test_every_release_takes_it(lnc):
    for sdk in (SDKS[0], SDKS[-1]):
        for rows, renormalise in ((3, True), (40, False)):
            args, _ = made(rows, 256)
            with compiling_for(Target(sdk, lnc=lnc, checks="cautious", transposes_dma_on_tensor_engine=True)):
                decode_router[lnc](*args, 8, renormalise)


def test_what_does_not_fit_is_refused():
    args, _ = made(1, 64)
    with pytest.raises(AssertionError, match="top_k is 9, must be 1 to 8"):
        decode_router[1](*args, 9)
    with pytest.raises(AssertionError, match="top_k is 3, must be a multiple of the 2 cores"):
        decode_router[2](*args, 3)
    with pytest.raises(AssertionError, match="7 experts, must be 8 to 512"):
        decode_router[1](*made(1, 7)[0])
    with pytest.raises(AssertionError, match="513 experts, must be 8 to 512"):
        decode_router[1](*made(1, 513)[0])
    with pytest.raises(AssertionError, match="packed for 2 cores: each reads the whole"):
        decode_router[2](*args[:2], torch.cat((args[2], args[2])))
    with pytest.raises(AssertionError, match="65 rows, at most 64"):
        decode_router[1](*made(65, 64)[0])


@pytest.mark.parametrize("rows", [1, 40])
def test_modelled_at_the_35bs_size(rows):
    """Its megabyte takes a core 3.4 us; the rest is latency: what comes in, the norm, the search and what goes out."""
    example = mixture_examples.router(rows)
    (weights, _), report = profile(example.kernel, *example.args)
    assert np.isfinite(np.asarray(weights, dtype=np.float32)).all()
    assert report.time_us < (15 if rows == 1 else 22)
