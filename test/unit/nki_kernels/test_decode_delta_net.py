"""A DeltaNet mixer of one token a sequence in one program: against fp64, its twin, and the kernels it is made of."""

import ml_dtypes
import nki.collectives as ncc
import numpy as np
import pytest
import torch

from nki_kernels import examples
from nki_kernels.causal_conv1d import causal_conv1d_step
from nki_kernels.decode_delta_net import decode_delta_net
from nki_kernels.decode_delta_net_plan import sequences_at_once
from nki_kernels.decode_delta_net_torch import decode_delta_net_torch, delta_net_gates
from nki_kernels.decode_projection import gated_norm_projection
from nki_kernels.decode_projection_torch import pack_rows
from nki_kernels.gated_delta_rule_decode import gated_delta_rule_decode
from nki_kernels.interpreter import Target, compiling_for, profile, ranks
from nki_kernels.interpreter.target import SDKS

D, HIDDEN, EPS = 128, 512, 1e-5
ENTRIES = 24


def case(batch, cores, fp8, dtype=torch.float32, count=1, key_heads=2, heads=6, hostile=False, seed=0):
    """Arguments of each rank, then of all of them the whole output projection in fp64.

    The last sequence of several is a dummy row: it reads entry 0 and leaves nothing. The first leaves a checkpoint.
    Hostile: keys that are nearly the same from token to token, decays that are all but one or next to nothing.
    """
    rng, channels = np.random.default_rng(seed + batch), (2 * key_heads + heads) * D

    def normal(*shape, scale=1.0, mean=0.0):
        return torch.from_numpy(rng.normal(mean, scale, shape).astype(np.float32))

    x = normal(batch, HIDDEN).to(dtype)
    read = torch.from_numpy(rng.permutation(np.arange(1, ENTRIES - 1))[:batch].astype(np.int32)).view(1, -1)
    write = torch.stack((read, torch.full_like(read, ENTRIES)), dim=2)
    write[0, 0, 1] = ENTRIES - 1
    if batch > 1:
        read[0, -1], write[0, -1] = 0, ENTRIES
    out_scale = torch.from_numpy(rng.uniform(5e-4, 2e-3, HIDDEN).astype(np.float32)) if fp8 else None
    given, wide = [], []
    for _ in range(count):
        spread, mean = (0.05, 1.0) if hostile else (1.0, 0.0)
        windows, states = normal(ENTRIES, 3, channels, scale=spread, mean=mean).to(dtype), normal(ENTRIES, heads, D, D)
        windows[0], states[0] = 0, 0
        qkvz = normal(batch, channels + heads * D, scale=spread, mean=mean).to(dtype)
        ba = normal(batch, 2 * heads, scale=30.0 if hostile else 2.0).to(dtype)
        decays = torch.stack((-normal(heads).exp(), normal(heads)))
        taps, factor = normal(channels, 4, scale=0.5).to(dtype), 1 + 0.2 * normal(1, D)
        if fp8:
            codes = rng.normal(0, 50, (HIDDEN, heads * D)).clip(-240, 240).astype(ml_dtypes.float8_e4m3)
            out, exact = torch.from_numpy(codes.view(np.uint8)), codes.astype(np.float64) * out_scale.numpy()[:, None]
        else:
            out = normal(HIDDEN, heads * D, scale=0.06).to(torch.bfloat16)
            exact = out.double().numpy()
        scale = None if out_scale is None else out_scale.view(cores, -1)
        packed = pack_rows(out, cores)
        given.append((x, qkvz, ba, windows, states, taps, decays, factor, packed, read, write.view(1, -1), scale))
        wide.append(torch.from_numpy(exact))
    return given, wide


def exactly(args, wide):
    """What a rank adds to the residual, states and windows behind the token of each sequence, in fp64."""
    x, qkvz, ba, windows, states, taps, decays, factor, _, read, _, _ = args
    heads, channels = states.shape[1], windows.shape[2]
    key_dim = (channels - heads * D) // 2
    joined = torch.cat((windows[read[0].long()], qkvz[:, None, :channels]), dim=1).double()
    mixed = torch.einsum("bdc,cd->bc", joined, taps.double())
    mixed = mixed * torch.sigmoid(mixed)
    if x.dtype == torch.bfloat16:
        mixed = mixed.to(torch.bfloat16).double()  # as between two programs
    q, k, v = mixed.split((key_dim, key_dim, heads * D), dim=1)
    share = heads * D // key_dim
    q, k = (part.view(len(x), -1, D).repeat_interleave(share, dim=1) for part in (q, k))
    q, k = (part / (part.square().sum(-1, keepdim=True) + 1e-6).sqrt() for part in (q, k))
    b, a = ba.double().chunk(2, dim=1)
    g = decays[0].double() * torch.nn.functional.softplus(a + decays[1].double())
    state = states[read[0].long()].double() * g.exp()[:, :, None, None]
    delta = (v.view(len(x), heads, D) - torch.einsum("bhkv,bhk->bhv", state, k)) * torch.sigmoid(b)[:, :, None]
    state = state + k[..., None] * delta[:, :, None, :]
    o = torch.einsum("bhkv,bhk->bhv", state, q) / D**0.5
    z = qkvz[:, channels:].double().view(o.shape)
    n = o / (o.square().mean(-1, keepdim=True) + EPS).sqrt() * factor.double() * z * torch.sigmoid(z)
    return n.flatten(1) @ wide.T, state, joined[:, 1:]


def copied(args):
    """The banks are written in place: each form gets its own."""
    return tuple(arg.clone() if n in (3, 4) else arg for n, arg in enumerate(args))


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(("batch", "count", "dtype", "hostile"), [
    (1, 1, torch.float32, False), (2, 2, torch.bfloat16, False), (5, 1, torch.float32, True),
    (8, 4, torch.bfloat16, False), (16, 1, torch.float32, False)])  # fmt: skip
def test_it_is_the_mixer(batch, count, dtype, hostile, cores, fp8):
    """Norms are rounded to bfloat16 as in `gated_norm_projection`, whose bar this is; states are fp32's alone."""
    given, wide = case(batch, cores, fp8, dtype, count, hostile=hostile)
    group, mine = ncc.ReplicaGroup([list(range(count))]), [copied(args) for args in given]
    got = ranks(decode_delta_net[cores])(*mine, replica_group=group, ranks=count, eps=EPS)
    want, twin = given[0][0].double(), torch.zeros(batch, HIDDEN)
    for args, each, own in zip(given, wide, mine, strict=True):
        added, states, windows = exactly(args, each)
        want = want + added
        second = copied(args)
        twin = twin + decode_delta_net_torch(*second, ranks=count, eps=EPS)[0]
        real = batch - 1 if batch > 1 else 1
        left, kept = args[9][0, :real].long(), [ENTRIES - 1]
        for bank, exact, bar in ((4, states, 2e-5), (3, windows, 0.0)):
            for held in (own[bank], second[bank]):
                size = exact[:real].abs().max()
                assert (held[left].double() - exact[:real]).abs().max() <= bar * size
                assert (held[kept].double() - exact[:1]).abs().max() <= bar * size
                others = [n for n in range(ENTRIES) if n not in (*left.tolist(), *kept)]
                assert torch.equal(held[others], args[bank][others])
    size = (want - given[0][0].double()).abs().max()
    last = 2.0**-8 * want.abs() if dtype == torch.bfloat16 else 0.0
    for y, windows, states in got:
        assert torch.equal(y, got[0][0])
        assert ((y.double() - want).abs() <= 1e-2 * size + last).all()
        assert ((y.double() - twin.double()).abs() <= 5e-3 * size + last).all()
        assert windows.shape == given[0][3].shape
        assert states.dtype == torch.float32


@pytest.mark.parametrize("batch", [1, 3])
def test_windows_and_states_are_those_of_the_separate_kernels(batch):
    """Windows to the bit, also with bfloat16; states but for what beta is made by, a sigmoid in fp32 both times."""
    ((x, qkvz, ba, windows, states, taps, decays, factor, weight, read, write, scale),), _ = case(
        batch, 2, True, torch.bfloat16
    )
    mine = windows.clone(), states.clone()
    y, _, _ = decode_delta_net[2](x, qkvz, ba, *mine, taps, decays, factor, weight, read, write, scale, eps=EPS)
    heads, channels = states.shape[1], windows.shape[2]
    mixed, _ = causal_conv1d_step[2](qkvz[:, None, :channels].contiguous(), windows, taps, read, write)
    q, k, v = (p.reshape(batch, 1, -1, D) for p in mixed.split((2 * D, 2 * D, heads * D), dim=2))
    beta, g = (gate[:, None].contiguous() for gate in delta_net_gates(ba, decays))
    o, _ = gated_delta_rule_decode[2](q, k, v, g, beta, states, read, write)
    gate = qkvz[:, channels:].reshape(batch, heads, D)
    want = gated_norm_projection[2](x, o[:, 0], gate, factor, weight, scale, eps=EPS)
    assert torch.equal(mine[0], windows)
    assert (mine[1] - states).abs().max() <= 2e-6 * states.abs().max()
    assert (y.float() - want.float()).abs().max() <= 2e-2 * want.float().abs().max()


@pytest.mark.parametrize("lnc", [1, 2])
def test_every_release_takes_it(lnc):
    given, _ = case(3, lnc, True, torch.bfloat16, 2)
    group = ncc.ReplicaGroup([[0, 1]])
    for sdk in (SDKS[0], SDKS[-1]):
        with compiling_for(Target(sdk, lnc=lnc, checks="cautious", transposes_dma_on_tensor_engine=True)):
            ranks(decode_delta_net[lnc])(*[copied(args) for args in given], replica_group=group, ranks=2)


def test_what_does_not_fit_is_refused():
    ((*args,),), _ = case(1, 2, False)
    with pytest.raises(AssertionError, match="packed for 2 cores, launched on 1"):
        decode_delta_net[1](*args)
    with pytest.raises(AssertionError, match="24 entries of windows, 23 of states"):
        decode_delta_net[2](*args[:4], args[4][:23].clone(), *args[5:])
    assert [sequences_at_once(1, 3), sequences_at_once(2, 6), sequences_at_once(16, 48)] == [32, 16, 2]
    ((*args,),), _ = case(17, 1, False)
    with pytest.raises(AssertionError, match="17 sequences of 2 key and 6 value heads a core, at most 16"):
        decode_delta_net[1](*args)


@pytest.mark.parametrize(("batch", "fp8", "gain"), [(1, True, 13), (1, False, 14), (8, True, 16)])
def test_modelled_it_takes_less_than_what_it_is_made_of(batch, fp8, gain):
    """us, of the 27B on four ranks of two cores; `conv_step` and `decode` are of one core, beside which one more is."""
    apart = 0.0
    for example in (
        examples.conv_step(batch), examples.decode(batch), examples.output_projection(batch, fp8),
    ):  # fmt: skip
        apart += profile(example.kernel, *example.args, world=example.ranks, **example.kwargs)[1].time_us
    example = examples.delta_net(batch, fp8)
    _, report = profile(example.kernel, *example.args, world=4, **example.kwargs)
    assert report.time_us < apart - gain
    assert report.sbuf_peak < 160 * 1024
