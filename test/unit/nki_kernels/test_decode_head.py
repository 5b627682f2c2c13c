"""The decode step's head against its twin and fp64, and what its candidates are worth to a draw."""

import ml_dtypes
import numpy as np
import pytest
import torch

from nki_kernels import examples
from nki_kernels.decode_head import decode_head
from nki_kernels.decode_head_plan import RUN, runs_of_chunks
from nki_kernels.decode_head_torch import decode_head_torch, pack_head, pack_scale, tokens_of_chunks
from nki_kernels.decode_mlp_torch import pack_gamma
from nki_kernels.interpreter import Target, compiling_for, profile
from nki_kernels.interpreter.target import SDKS

EPS, HIDDEN = 1e-5, 256


def made(rows, tokens, cores, fp8, seed=0):
    """Arguments, and logits in fp64."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(0, 1, (rows, HIDDEN)).astype(np.float32))
    factor = torch.from_numpy(rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32))
    if fp8:
        values = rng.normal(0, 50, (tokens, HIDDEN)).clip(-240, 240).astype(ml_dtypes.float8_e4m3)
        scale = rng.uniform(5e-4, 2e-3, tokens).astype(np.float32)
        weight, wide = torch.from_numpy(values.view(np.uint8)), values.astype(np.float64) * scale[:, None]
    else:
        weight = torch.from_numpy(rng.normal(0, 0.06, (tokens, HIDDEN))).to(torch.bfloat16)
        scale, wide = None, weight.double().numpy()
    scales = None if scale is None else pack_scale(torch.from_numpy(scale), cores)
    n = x.double().numpy() * factor.double().numpy()
    n /= np.sqrt((x.double().numpy() ** 2).mean(-1, keepdims=True) + EPS)
    return (x, pack_gamma(factor), pack_head(weight, cores), scales), n @ wide.T


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(("rows", "tokens"), [(1, 128), (2, 2000), (5, 4128), (33, 4176), (64, 1504)])
def test_against_twin_and_fp64(rows, tokens, cores, fp8):
    """The twin rounds where the kernel does; where the order of a sum turns a rounding, one factor is 2^-8 off."""
    args, want = made(rows, tokens, cores, fp8)
    logits, values, ids, bounds = decode_head[cores](*args, 2, EPS)
    twin = decode_head_torch(*args, 2, EPS)
    size = np.abs(want).max()
    off = np.abs(logits.double().numpy() - twin[0].double().numpy())
    assert off.max() <= 5e-3 * size
    assert np.median(off) <= 1e-5 * size
    assert np.abs(logits.double().numpy() - want).max() <= 1e-2 * size
    assert [t.shape for t in (values, ids, bounds)] == [t.shape for t in twin[1:]]
    # What is said of candidates is exact for the logits that came out.
    assert torch.equal(logits.gather(1, ids.long()), values)
    others = logits.scatter(1, ids.long(), -torch.inf).amax(1)
    assert (others <= bounds.amax(1)).all()
    for row in ids.tolist():
        assert len(set(row)) == len(row)
    own = tokens // cores
    for n, chunk in enumerate([c + core * own for core in range(cores) for c in tokens_of_chunks(own)]):
        expected = torch.sort(logits[:, chunk], dim=1, descending=True, stable=True)
        assert torch.equal(values[:, 16 * n : 16 * (n + 1)], expected.values[:, :16])
        assert torch.equal(ids[:, 16 * n : 16 * (n + 1)].long(), chunk[expected.indices[:, :16]])


@pytest.mark.parametrize("cores", [1, 2])
def test_equal_logits_are_given_in_order_of_tokens(cores):
    """Tokens of equal weights, in one chunk and over all of them."""
    args, _ = made(3, 2048, cores, False)
    weight = torch.zeros(2048, HIDDEN, dtype=torch.bfloat16)
    weight[::3] = 0.5
    logits, values, ids, bounds = decode_head[cores](*args[:2], pack_head(weight, cores), None, 1, EPS)
    assert torch.equal(logits.gather(1, ids.long()), values)
    twin = decode_head_torch(*args[:2], pack_head(weight, cores), None, 1, EPS)
    assert torch.equal(ids, twin[2])
    # Seven hundred are equal and 8 of a chunk are kept: no token left out is above the bound, and the draw can see it.
    positive = logits.amax(1) > 0
    assert torch.equal(bounds.amax(1)[positive], values.amax(1)[positive])


@pytest.mark.parametrize("neighbours", [True, False])
def test_the_most_likely_tokens_are_among_the_candidates_of_a_vocabulary(neighbours):
    """256 likely tokens of 62,080, side by side or anywhere, are all found, and the bound tells that they are."""
    own, count = 31040, 256
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 1, 2 * own).astype(np.float32))
    likely = torch.arange(700, 700 + count) if neighbours else torch.from_numpy(rng.choice(2 * own, count, False))
    logits[likely] += 20
    values, bounds = [], []
    for core in range(2):
        for chunk in tokens_of_chunks(own):
            found = logits[chunk + core * own].sort(descending=True).values[:16]
            values.append(found)
            bounds.append(found[-1])
    best = torch.cat(values).sort(descending=True).values[:count]
    assert torch.equal(best, logits.sort(descending=True).values[:count])
    assert best[-1] > max(bounds)


@pytest.mark.parametrize("own", [64, 752, 2048, 15520, 31040, 124160])
def test_chunks_are_all_of_a_core(own):
    runs = runs_of_chunks(own)
    assert len(runs) % 4 == 0
    assert max(runs) * RUN <= 512
    assert max(runs) - min(runs) <= 1
    assert torch.equal(torch.cat(tokens_of_chunks(own)).sort().values, torch.arange(own))
    neighbours = [(chunk // RUN).diff() for chunk in tokens_of_chunks(own)]
    assert all(((n == 0) | (n == len(runs))).all() for n in neighbours)


@pytest.mark.parametrize("lnc", [1, 2])
def test_every_release_takes_it(lnc):
    for sdk in (SDKS[0], SDKS[-1]):
        for rows, fp8 in ((3, True), (40, False)):
            args, _ = made(rows, 1504, lnc, fp8)
            with compiling_for(Target(sdk, lnc=lnc, checks="cautious", transposes_dma_on_tensor_engine=True)):
                decode_head[lnc](*args)


def test_what_does_not_fit_is_refused():
    args, _ = made(1, 128, 2, False)
    with pytest.raises(AssertionError, match="packed for 2 cores, launched on 1"):
        decode_head[1](*args)
    with pytest.raises(AssertionError, match="3 rounds find more than a chunk has"):
        decode_head[2](*args, rounds=3)
    with pytest.raises(AssertionError, match="65 rows, at most 64"):
        decode_head[2](torch.ones(65, HIDDEN), *args[1:])
    with pytest.raises(ValueError, match="1000 tokens must be 64 at least and a multiple of 16"):
        pack_head(torch.ones(1000, HIDDEN, dtype=torch.bfloat16), 2)
    with pytest.raises(ValueError, match="48 tokens must be 64 at least"):
        pack_head(torch.ones(48, HIDDEN, dtype=torch.bfloat16), 2)


@pytest.mark.parametrize(("rows", "fp8", "share"), [(1, True, 0.85), (1, False, 0.93), (40, True, 0.6)])
def test_modelled_at_the_27bs_width_of_a_part_of_the_vocabulary(rows, fp8, share):
    """An eighth of a rank's tokens: what HBM's bandwidth is of the time from the first product to the last."""
    example = examples.head(rows, fp8, tokens=7680)
    outputs, report = profile(example.kernel, *example.args)
    assert all(np.isfinite(np.asarray(y, dtype=np.float32)).all() for y in outputs)
    products = [n for n in report.nodes if n.instr.op == "nc_matmul"][1:]
    hbm = 5120 * 7680 * (1 if fp8 else 2) / 2 / 305e3
    assert hbm / ((max(n.finish for n in products) - min(n.start for n in products)) / 1e3) > share
    assert report.sbuf_peak < 160 * 1024
