"""The decode step's attention layer against its twin and fp64, over sequences, tokens, cores, ranks and types."""

from dataclasses import dataclass

import ml_dtypes
import nki.collectives as ncc
import numpy as np
import pytest
import torch

from nki_kernels import examples
from nki_kernels.decode_attention import decode_attention
from nki_kernels.decode_attention_torch import decode_attention_torch, pack
from nki_kernels.decode_mlp_torch import pack_gamma
from nki_kernels.interpreter import Target, compiling_for, profile, ranks
from nki_kernels.interpreter.target import SDKS

EPS, SIZE, PAIRS = 1e-5, 256, 32


@dataclass(frozen=True)
class Shape:
    held: tuple[int, ...]
    tokens: int = 1
    heads: int = 2
    key_heads: int = 1
    blocks: int = 2
    begin: int = 0
    hidden: int = 256


@dataclass
class Layer:
    """Arguments rank by rank, and what fp64 needs."""

    args: list[tuple]
    wide: list[dict]


def matrix(rng, rows, columns, fp8):
    """A weight, its scales (None without codes), and itself in fp64."""
    if not fp8:
        made = torch.from_numpy(rng.normal(0, 0.06, (rows, columns))).to(torch.bfloat16)
        return made, None, made.double().numpy()
    values = rng.normal(0, 50, (rows, columns)).clip(-240, 240).astype(ml_dtypes.float8_e4m3)
    scale = rng.uniform(5e-4, 2e-3, rows).astype(np.float32)
    return torch.from_numpy(values.view(np.uint8)), torch.from_numpy(scale), values.astype(np.float64) * scale[:, None]


def layer(shape, cores, fp8=False, count=1, dtype=torch.float32, sharp=1.0, seed=0):
    """Tables name scattered blocks; the last sequence's rows are not kept if it holds nothing."""
    rng = np.random.default_rng(seed)
    batch, rows = len(shape.held), len(shape.held) * shape.tokens
    x = torch.from_numpy(rng.normal(0, 1, (rows, shape.hidden)).astype(np.float32))
    factors = [torch.from_numpy(rng.uniform(0.5, 1.5, n).astype(np.float32)) for n in (shape.hidden, SIZE, SIZE)]
    factors[1] *= sharp
    angles = torch.from_numpy(rng.uniform(0, 6, (rows, PAIRS)).astype(np.float32))
    order = 1 + rng.permutation(batch * (shape.blocks + 1)).reshape(batch, -1).astype(np.int32)
    table, entries = torch.from_numpy(order[:, : shape.blocks].copy()), 64 * (batch * (shape.blocks + 1) + 1)
    at = np.array(shape.held)[:, None] + np.arange(shape.tokens)
    places = np.take_along_axis(order, at // 64, 1) * 64 + at % 64
    if shape.held[-1] == 0 and batch > 1:
        places[-1] = entries
    start = torch.tensor([shape.held], dtype=torch.int32)
    made = Layer([], [])
    for _ in range(count):
        into = matrix(rng, SIZE * 2 * (shape.heads + shape.key_heads), shape.hidden, fp8)
        out = matrix(rng, shape.hidden, SIZE * shape.heads, fp8)
        caches = [torch.from_numpy(rng.normal(0, 1, (entries, shape.key_heads, SIZE))).to(dtype) for _ in range(2)]
        packed = pack(into[0], out[0], factors[1], factors[2], cores, (into[1], out[1]) if fp8 else None)
        made.args.append((
            x, pack_gamma(factors[0]), packed.into, packed.out, packed.q_factor, packed.k_factor, angles.cos(),
            angles.sin(), *caches, table, start, torch.from_numpy(places.reshape(-1, 1).astype(np.int32)),
            packed.into_scale, packed.out_scale,
        ))  # fmt: skip
        numbers = [v.double().numpy() for v in (*factors, angles, *caches)]
        made.wide.append({"into": into[2], "out": out[2], "numbers": numbers})
    return made


def in_fp64(shape, made):
    """x and what the ranks add to it, rounding nowhere; a sequence and a query at a time."""
    x = made.args[0][0].double().numpy()
    table, total = made.args[0][10].numpy(), x.copy()
    for wide in made.wide:
        gamma, q_norm, k_norm, angles, k_cache, v_cache = wide["numbers"]
        n = x * gamma / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)
        h, g = shape.heads, shape.key_heads
        q, gate, k, v = np.split((n @ wide["into"].T).reshape(len(x), -1, SIZE), np.cumsum((h, h, g)), axis=1)
        q, k = rotate(norm(q) * q_norm, angles), rotate(norm(k) * k_norm, angles)
        mixed = np.empty((len(x), h, SIZE))
        for row in range(len(x)):
            b, t = divmod(row, shape.tokens)
            old = [c.reshape(-1, 64, g, SIZE)[table[b]].reshape(-1, g, SIZE) for c in (k_cache, v_cache)]
            seen = slice(shape.begin, shape.held[b])
            new = slice(b * shape.tokens, b * shape.tokens + t + 1)
            keys, values = np.concatenate((old[0][seen], k[new])), np.concatenate((old[1][seen], v[new]))
            for head in range(h):
                s = keys[:, head * g // h] @ q[row, head] / 16
                p = np.exp(s - s.max())
                mixed[row, head] = p @ values[:, head * g // h] / p.sum()
        total += (mixed / (1 + np.exp(-gate))).reshape(len(x), -1) @ wide["out"].T
    return x, total


def norm(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)


def rotate(x, angles):
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b, rest = x[..., :PAIRS], x[..., PAIRS : 2 * PAIRS], x[..., 2 * PAIRS :]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin, rest), axis=-1)


def run(shape, made, cores, count=1):
    """The kernel on copies of the caches."""
    given = [tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in args) for args in made.args]
    group = ncc.ReplicaGroup([list(range(count))])
    options = {"replica_group": group, "ranks": count, "eps": EPS, "begin": shape.begin}
    return ranks(decode_attention[cores])(*given, **options)


SHAPES = {
    "a token": Shape((70,)),
    "blocks' edges": Shape((0, 1, 63, 64, 65, 127, 128, 0)),
    "drafts": Shape((127, 5), tokens=2),
    "one block": Shape((64, 3, 0), tokens=3, blocks=1),
    "odd blocks, key heads": Shape((64, 128, 129, 190), tokens=5, heads=6, key_heads=2, blocks=3),
    "all rows": Shape((0, 60, 61, 100, 123, 64, 1, 128), tokens=5, heads=6),
    "nothing at the first place": Shape((64, 1, 130), tokens=2, blocks=3, begin=1),
    "chunks": Shape((4222,), tokens=2, heads=3, blocks=67),
}


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("name", SHAPES)
def test_against_twin_and_fp64(name, cores, fp8):
    """As in the feed-forward block: the twin rounds where the kernel does, but for the order of sums, which may turn
    the rounding of one factor to bfloat16; fp64 rounds nowhere."""
    shape = SHAPES[name]
    made = layer(shape, cores, fp8)
    ((y, k_cache, v_cache),) = run(shape, made, cores)
    twin = decode_attention_torch(*made.args[0], eps=EPS, begin=shape.begin)
    x, want = in_fp64(shape, made)
    size = np.abs(want - x).max()
    off = np.abs(y.double().numpy() - twin[0].double().numpy())
    assert off.max() <= 5e-3 * size
    assert np.median(off) <= 1e-5 * size
    assert np.abs(y.double().numpy() - want).max() <= 1e-2 * size
    places, entries = made.args[0][12][:, 0], len(k_cache)
    kept = places[places < entries].long()
    for got, expected, old in ((k_cache, twin[1], made.args[0][8]), (v_cache, twin[2], made.args[0][9])):
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)
        untouched = torch.ones(entries, dtype=torch.bool)
        untouched[kept] = False
        assert torch.equal(got[untouched], old[untouched])
        assert not torch.equal(got[kept], old[kept])


@pytest.mark.parametrize("count", [2, 4])
def test_ranks_sum(count):
    shape = SHAPES["drafts"]
    made = layer(shape, 2, True, count)
    got = run(shape, made, 2, count)
    assert all(torch.equal(y[0], got[0][0]) for y in got)
    x, want = in_fp64(shape, made)
    assert np.abs(got[0][0].double().numpy() - want).max() <= 1e-2 * np.abs(want - x).max()
    for rank, (_, k_cache, _) in enumerate(got):
        twin = decode_attention_torch(*made.args[rank], ranks=count, eps=EPS)
        torch.testing.assert_close(k_cache, twin[1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("cores", [1, 2])
def test_bfloat16_cache(cores):
    """Keys, values, queries and weights of values are rounded: 2^-9 each, at random."""
    shape = SHAPES["odd blocks, key heads"]
    made = layer(shape, cores, True, dtype=torch.bfloat16)
    ((y, k_cache, v_cache),) = run(shape, made, cores)
    twin = decode_attention_torch(*made.args[0], eps=EPS)
    x, want = in_fp64(shape, made)
    assert np.abs(y.double().numpy() - want).max() <= 2e-2 * np.abs(want - x).max()
    for got, expected in ((k_cache, twin[1]), (v_cache, twin[2])):
        # Nearly all bits agree; where the order of a sum turned a rounding, one is 2^-8 off.
        assert (got != expected).float().mean() < 1e-3
        torch.testing.assert_close(got.float(), expected.float(), rtol=2.0**-7, atol=1e-5)


@pytest.mark.parametrize("cores", [1, 2])
def test_scores_that_leave_one_key(cores):
    """Scores of hundreds: one key takes all, in one core's part or among the new tokens; a core's part may be worth
    e^-200 of the other's."""
    shape = Shape((130, 70, 0), tokens=3, heads=4, blocks=3)
    made = layer(shape, cores, sharp=40.0)
    ((y, _, _),) = run(shape, made, cores)
    x, want = in_fp64(shape, made)
    assert np.abs(y.double().numpy() - want).max() <= 2e-2 * np.abs(want - x).max()


def test_tokens_together_are_tokens_one_by_one():
    """Through the cache: what a step wrote, the next reads. A draft that was wrong is written over."""
    shape = Shape((62, 126), tokens=3, blocks=3)
    made = layer(shape, 2)
    together = run(shape, made, 2)[0]
    args = list(made.args[0])
    args[8], args[9] = together[1].clone(), together[2].clone()  # with all of these tokens' keys in it, as drafts
    args[8][args[12][1::3, 0].long()] = 7.0
    for t in range(3):
        rows = torch.tensor([t, 3 + t])
        step = Shape(tuple(h + t for h in shape.held), blocks=3)
        now = list(args)
        now[0], now[6], now[7], now[12] = (args[n][rows] for n in (0, 6, 7, 12))
        now[11] = torch.tensor([step.held], dtype=torch.int32)
        y, args[8], args[9] = run(step, Layer([tuple(now)], []), 2)[0]
        torch.testing.assert_close(y, together[0][rows], rtol=0, atol=2e-3)
    for n in (1, 2):
        torch.testing.assert_close(args[7 + n], together[n], rtol=0, atol=2e-5)


@pytest.mark.parametrize("lnc", [1, 2])
def test_every_release_takes_it(lnc):
    for sdk in (SDKS[0], SDKS[-1]):
        for shape, fp8, dtype in ((SHAPES["drafts"], True, torch.bfloat16), (SHAPES["all rows"], False, torch.float32)):
            with compiling_for(Target(sdk, lnc=lnc, checks="cautious", transposes_dma_on_tensor_engine=True)):
                run(shape, layer(shape, lnc, fp8, 2, dtype), lnc, 2)


@pytest.mark.parametrize(("change", "match"), [
    ({"cores": 1}, "packed for 2 cores, launched on 1"), ({"begin": 65}, "begin at 65"),
    ({"tokens": 65, "held": (1,)}, "65 rows, at most 64"),
    ({"heads": 3, "key_heads": 2}, "3 query heads do not divide"),
    ({"rows": 3}, "3 rows do not divide among 2 sequences")])  # fmt: skip
def test_what_does_not_fit_is_refused(change, match):
    fields = {k: v for k, v in change.items() if k in ("tokens", "held", "heads", "key_heads", "begin")}
    shape = Shape(**({"held": (1, 2), "blocks": 3} | fields))
    args = list(layer(shape, 2).args[0])
    if "rows" in change:
        args[0] = torch.ones(change["rows"], shape.hidden)
    with pytest.raises(AssertionError, match=match):
        decode_attention[change.get("cores", 2)](*args, begin=shape.begin)


def test_codes_in_the_cache_are_refused():
    args = list(layer(Shape((1,)), 1).args[0])
    args[8], args[9] = (torch.zeros_like(c, dtype=torch.uint8) for c in args[8:10])
    with pytest.raises(AssertionError, match=r"keys and values are .*uint8.*: this kernel takes float32 or bfloat16"):
        decode_attention[1](*args)


def test_packing_refuses_what_it_cannot_place():
    into, out, one = (
        torch.ones(1024, 256, dtype=torch.bfloat16),
        torch.ones(256, 256, dtype=torch.bfloat16),
        torch.ones(256),
    )
    with pytest.raises(ValueError, match="uint8 codes have scales"):
        pack(into.to(torch.uint8), out, one, one, 2)
    with pytest.raises(ValueError, match="1000 channels and norms of 256"):
        pack(into[:1000], out, one, one, 2)
    with pytest.raises(ValueError, match="1024 channels and norms of 128"):
        pack(into, out, one[:128], one, 2)


@pytest.mark.parametrize(("fp8", "most"), [(True, 110), (False, 140)])
def test_modelled_at_the_27bs_size_on_four_ranks(fp8, most):
    """A token over 8,192: the input's weights, then keys, then the output's weights pass without a pause of HBM in
    bfloat16 or of TensorE in FP8 until the last product, but for the norm before and a meeting of the cores."""
    example = examples.attention_layer(1, 8192, fp8=fp8)
    y, report = profile(example.kernel, *example.args, world=4, **example.kwargs)
    assert np.isfinite(y[0].astype(np.float32)).all()
    last = max(n.finish for n in report.nodes if n.instr.op == "nc_matmul") / 1e3
    assert report.time_us < most
    assert report.busy_us["tensor" if fp8 else "dma"] > 0.7 * last
    assert report.sbuf_peak < 160 * 1024
