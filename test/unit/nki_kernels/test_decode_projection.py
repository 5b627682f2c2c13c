"""The projections of a decode step's mixers against their twins and fp64, over rows, cores, ranks and types."""

import ml_dtypes
import nki.collectives as ncc
import numpy as np
import pytest
import torch

from nki_kernels import examples
from nki_kernels.decode_mlp_torch import pack_gamma
from nki_kernels.decode_projection import gated_norm_projection, norm_projection
from nki_kernels.decode_projection_torch import (
    gated_norm_projection_torch,
    norm_projection_torch,
    pack_columns,
    pack_rows,
)
from nki_kernels.interpreter import PriceList, Target, compiling_for, profile, ranks
from nki_kernels.interpreter.target import SDKS

EPS = 1e-5


def weight(rng, rows, columns, fp8):
    """A weight [out, in], its scales (None without codes), and itself in fp64."""
    if not fp8:
        made = torch.from_numpy(rng.normal(0, 0.06, (rows, columns))).to(torch.bfloat16)
        return made, None, made.double().numpy()
    values = rng.normal(0, 50, (rows, columns)).clip(-240, 240).astype(ml_dtypes.float8_e4m3)
    scale = rng.uniform(5e-4, 2e-3, rows).astype(np.float32)
    return torch.from_numpy(values.view(np.uint8)), torch.from_numpy(scale), values.astype(np.float64) * scale[:, None]


def check(got, twin, want, residual):
    """The twin rounds as the kernel does; where the order of a sum turns a rounding, one factor is 2^-8 off. fp64 does
    not round the norm to bfloat16: every factor is 2^-9 off, at random."""
    size = np.abs(want - residual).max()
    off = np.abs(got.double().numpy() - twin.double().numpy())
    assert off.max() <= 5e-3 * size
    assert np.median(off) <= 1e-5 * size
    assert np.abs(got.double().numpy() - want).max() <= 1e-2 * size


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(("rows", "channels"), [(1, 1036), (2, 512), (5, 24), (8, 1036), (40, 1036), (64, 2200)])
def test_norm_and_input(rows, channels, cores, fp8):
    rng = np.random.default_rng(rows)
    made, scale, wide = weight(rng, channels, 256, fp8)
    x = torch.from_numpy(rng.normal(0, 1, (rows, 256)).astype(np.float32))
    factor = torch.from_numpy(rng.uniform(0.5, 1.5, 256).astype(np.float32))
    args = (x, pack_gamma(factor), pack_columns(made, cores), None if scale is None else scale.reshape(cores, -1), EPS)
    n = x.double().numpy() * factor.double().numpy()
    want = n / np.sqrt((x.double().numpy() ** 2).mean(-1, keepdims=True) + EPS) @ wide.T
    check(norm_projection[cores](*args), norm_projection_torch(*args), want, 0.0)


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(("rows", "channels"), [(1, 24), (5, 2), (40, 6)])
def test_a_few_channels_in_bfloat16_beside_the_others(rows, channels, cores, fp8):
    rng = np.random.default_rng(rows)
    made, scale, _ = weight(rng, 520, 256, fp8)
    more, _, wide = weight(rng, channels, 256, False)
    x, factor = torch.from_numpy(rng.normal(0, 1, (rows, 256)).astype(np.float32)), torch.ones(256)
    args = (x, pack_gamma(factor), pack_columns(made, cores), None if scale is None else scale.reshape(cores, -1), EPS)
    y, z = norm_projection[cores](*args, few=pack_columns(more, cores), has_few=True)
    assert torch.equal(y, norm_projection[cores](*args))
    want = x.double().numpy() / np.sqrt((x.double().numpy() ** 2).mean(-1, keepdims=True) + EPS) @ wide.T
    check(z, norm_projection_torch(*args, few=pack_columns(more, cores), has_few=True)[1], want, 0.0)


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(("rows", "count"), [(1, 1), (2, 4), (5, 2), (8, 1), (40, 2)])
def test_gated_norm_and_output(rows, count, cores, fp8):
    rng = np.random.default_rng(rows)
    heads, hidden = 3, 1280
    x = torch.from_numpy(rng.normal(0, 1, (rows, hidden)).astype(np.float32))
    factor = torch.from_numpy(rng.uniform(0.5, 1.5, (1, 128)).astype(np.float32))
    group, given, brought, want = ncc.ReplicaGroup([list(range(count))]), [], [], x.double().numpy()
    # A projection's scales are of whole rows: every rank has the same.
    whole, scale, wide = weight(rng, hidden, heads * 128 * count, fp8)
    for rank in range(count):
        mixed = torch.from_numpy(rng.normal(0, 2, (rows, heads, 128)).astype(np.float32))
        gate = torch.from_numpy(rng.normal(0, 1, (rows, heads, 128))).to(torch.bfloat16 if rows % 2 else torch.float32)
        part = slice(rank * heads * 128, (rank + 1) * heads * 128)
        packed = pack_rows(whole[:, part], cores), None if scale is None else scale.reshape(cores, -1)
        given.append((x, mixed, gate, factor, *packed))
        brought.append(gated_norm_projection_torch(*given[-1], ranks=count, eps=EPS))
        m, z = mixed.double().numpy(), gate.double().numpy()
        n = m / np.sqrt((m * m).mean(-1, keepdims=True) + EPS) * factor.double().numpy()[0] * z / (1 + np.exp(-z))
        want = want + n.reshape(rows, -1) @ wide[:, part].T
    got = ranks(gated_norm_projection[cores])(*given, replica_group=group, ranks=count, eps=EPS)
    assert all(torch.equal(y, got[0]) for y in got)
    check(got[0], torch.stack(brought).sum(0), want, x.double().numpy())


@pytest.mark.parametrize("sdk", [SDKS[0], SDKS[-1]])
@pytest.mark.parametrize("name", ["in", "out"])
def test_every_release_takes_them(name, sdk):
    example = (
        examples.input_projection(3, True, 256, 512, 12)
        if name == "in"
        else examples.output_projection(35, True, 512, 3)
    )
    with compiling_for(Target(sdk, lnc=2, checks="cautious", transposes_dma_on_tensor_engine=True)):
        found, _ = profile(example.kernel, *example.args, world=4, **example.kwargs)
    for y in found if isinstance(found, tuple) else (found,):
        assert np.isfinite(y.astype(np.float32)).all()


def test_what_does_not_fit_is_refused():
    x, one = torch.ones(1, 256), torch.ones(256, 256, dtype=torch.bfloat16)
    with pytest.raises(AssertionError, match="packed for 1 cores, launched on 2"):
        norm_projection[2](x, pack_gamma(torch.ones(256)), pack_columns(one, 1))
    with pytest.raises(AssertionError, match="64 rows of 9 heads, at most 512"):
        gated_norm_projection[1](
            torch.ones(64, 256), torch.ones(64, 9, 128), torch.ones(64, 9, 128), torch.ones(1, 128),
            pack_rows(torch.ones(256, 9 * 128, dtype=torch.bfloat16), 1),
        )  # fmt: skip
    with pytest.raises(ValueError, match="255 channels must divide among 2 cores"):
        pack_columns(one[:255], 2)
    with pytest.raises(ValueError, match="200 channels by 128"):
        pack_rows(one[:, :200], 2)


@pytest.mark.parametrize(("fp8", "most_in", "most_out"), [(True, 52, 46), (False, 85, 55)])
def test_modelled_at_the_27bs_size_on_four_ranks(fp8, most_in, most_out):
    """4,120 channels in, 1,536 out of a rank: bytes over HBM's bandwidth from the start to the last product."""
    rate = PriceList().costs().hbm_bytes_ns * 2e3
    for example, most, size, share in (
        (examples.input_projection(1, fp8), most_in, 5120 * 4120, 0.72 if fp8 else 0.9),
        (examples.output_projection(1, fp8), most_out, 5120 * 1536, 0.55 if fp8 else 0.75),
    ):
        _, report = profile(example.kernel, *example.args, world=4, **example.kwargs)
        last = max(n.finish for n in report.nodes if n.instr.op == "nc_matmul") / 1e3
        assert report.time_us < most
        assert share < size * (1 if fp8 else 2) / rate / last < 1
