"""A feed-forward block and the next projection in one program: against both alone, over rows, cores, ranks, types."""

import dataclasses

import ml_dtypes
import nki.collectives as ncc
import numpy as np
import pytest
import torch

from nki_kernels import examples
from nki_kernels.decode_mlp import decode_mlp
from nki_kernels.decode_mlp_projection import decode_mlp_projection
from nki_kernels.decode_mlp_projection_torch import (
    decode_mlp_projection_torch,
    next_projection,
    pack_blocks,
    pack_gamma_blocks,
)
from nki_kernels.decode_mlp_torch import pack, pack_gamma
from nki_kernels.interpreter import Target, compiling_for, profile, ranks
from nki_kernels.interpreter.target import SDKS

HIDDEN, INNER, CHANNELS, FEW, EPS = 512, 512, 600, 24, 1e-5


def matrix(rng, rows, columns, fp8):
    if not fp8:
        return torch.from_numpy(rng.normal(0, 0.06, (rows, columns))).to(torch.bfloat16)
    values = rng.normal(0, 50, (rows, columns)).clip(-240, 240).astype(ml_dtypes.float8_e4m3)
    return torch.from_numpy(values.view(np.uint8))


def arguments(rows, cores, fp8, dtype, count=1):
    """Arguments of the block, then those of the projection, rank by rank."""
    rng = np.random.default_rng(rows)
    x = torch.from_numpy(rng.normal(0, 1, (rows, HIDDEN))).to(dtype)
    factors = [torch.from_numpy(rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32)) for _ in range(2)]
    out = []
    for _ in range(count):
        sizes = ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))
        scales = [torch.from_numpy(rng.uniform(5e-4, 2e-3, s[0]).astype(np.float32)) for s in sizes] if fp8 else None
        packed = dataclasses.astuple(pack(*(matrix(rng, *s, fp8) for s in sizes), cores, scales))
        scale = torch.from_numpy(rng.uniform(5e-4, 2e-3, (cores, CHANNELS // cores)).astype(np.float32))
        into = pack_blocks(matrix(rng, CHANNELS, HIDDEN, fp8), cores), scale if fp8 else None
        few = pack_blocks(matrix(rng, FEW, HIDDEN, False), cores)
        out.append(((x, pack_gamma(factors[0]), *packed), (pack_gamma_blocks(factors[1]), *into, few)))
    return out


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(("rows", "count", "dtype"), [
    (1, 1, torch.float32), (2, 2, torch.bfloat16), (5, 4, torch.float32), (40, 1, torch.bfloat16),
    (64, 2, torch.float32)])  # fmt: skip
def test_it_is_the_block_then_the_projection(rows, count, dtype, cores, fp8):
    """The residual is the block's own, bit for bit; the projection is of it, and norms it in another order of sums,
    which may turn the rounding of one factor to bfloat16."""
    given = arguments(rows, cores, fp8, dtype, count)
    how = {"replica_group": ncc.ReplicaGroup([list(range(count))]), "ranks": count, "eps": EPS}
    alone = ranks(decode_mlp[cores])(*[block for block, _ in given], **how)
    chained = []
    for (x, gamma, gate_up, down, of_gate_up, of_down), (next_gamma, into, scale, _) in given:
        chained.append((x, gamma, gate_up, down, next_gamma, into, of_gate_up, of_down, scale))
    got = ranks(decode_mlp_projection[cores])(*chained, **how)
    for (y, z), residual, (_, (next_gamma, into, scale, _)) in zip(got, alone, given, strict=True):
        assert torch.equal(y, residual)
        want = next_projection(residual, next_gamma, into, scale, EPS)
        size = want.abs().max()
        last = 2.0**-8 * want.abs() if dtype == torch.bfloat16 else 0.0
        assert ((z.float() - want).abs() <= 5e-3 * size + last).all()
        assert (z.float() - want).abs().median() <= (1e-5 if dtype == torch.float32 else 2e-3) * size
    if count == 1:
        few = given[0][1][3]
        beside = decode_mlp_projection[cores](*chained[0], eps=EPS, few=few, has_few=True)
        twin = decode_mlp_projection_torch(*chained[0], EPS, few, True)
        assert torch.equal(beside[1], got[0][1])
        assert (beside[2].float() - twin[2]).abs().max() <= 2e-2 * twin[2].abs().max()


@pytest.mark.parametrize("lnc", [1, 2])
def test_every_release_takes_it(lnc):
    group = ncc.ReplicaGroup([[0, 1]])
    given = arguments(3, lnc, True, torch.bfloat16, 2)
    chained = [(*b[:4], n[0], n[1], b[4], b[5], n[2], group, 2, EPS, n[3], True) for b, n in given]
    for sdk in (SDKS[0], SDKS[-1]):
        with compiling_for(Target(sdk, lnc=lnc, checks="cautious", transposes_dma_on_tensor_engine=True)):
            ranks(decode_mlp_projection[lnc])(*chained)


def test_what_does_not_fit_is_refused():
    ((block, (gamma, into, scale, _)),) = arguments(1, 2, True, torch.float32)
    args = (*block[:4], gamma, into, block[4], block[5], scale)
    with pytest.raises(AssertionError, match="packed for 2 cores, launched on 1"):
        decode_mlp_projection[1](*args)
    with pytest.raises(AssertionError, match="another type than the block's"):
        decode_mlp_projection[2](*args[:5], into.float().to(torch.bfloat16), *args[6:])
    with pytest.raises(ValueError, match="hidden size 500 must be a multiple of 128"):
        pack_blocks(torch.ones(8, 500), 2)


@pytest.mark.parametrize(("fp8", "gain"), [(False, 20), (True, 3)])
def test_modelled_the_next_weights_come_while_ranks_sum(fp8, gain):
    """us less than the two programs take: in bfloat16, which HBM binds, all of an all-reduce."""
    apart, block = 0.0, examples.mlp_and_input(1, fp8)
    for example in (examples.mlp_step(1, fp8), examples.input_projection(1, fp8)):
        apart += profile(example.kernel, *example.args, world=4, **example.kwargs)[1].time_us
    _, report = profile(block.kernel, *block.args, world=4, **block.kwargs)
    assert report.time_us < apart - gain
    assert report.sbuf_peak < 160 * 1024
