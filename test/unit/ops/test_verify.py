"""Steps of a token and drafts, of which the next step takes some in, against the definitions over what is confirmed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from bank_cases import CHANNELS, HEADS, KEY_HEADS, TORCH, int32, normal

from nki_kernels.interpreter.install import real_nki_present
from qwen36_neuron.ops.banks import Verify, factor_columns
from qwen36_neuron.ops.causal_conv1d import naive_causal_conv1d
from qwen36_neuron.ops.gated_delta_rule import gated_delta_rule_recurrent
from qwen36_neuron.ops.kernels import Kernels

LANES, DRAFTS, ENTRIES, D = 4, 4, 9, 128
Tensors = tuple[torch.Tensor, ...]
Run = Callable[[Tensors, torch.Tensor, torch.Tensor, Verify], Tensors]
Define = Callable[[Tensors, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(params=["torch", "one-core", "two-cores"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    if request.param == "torch":
        return TORCH
    if real_nki_present():
        pytest.skip("AWS's own nki is installed, whose place the interpreter does not take")
    from qwen36_neuron.ops.nki_kernels import NkiKernels

    return NkiKernels(1 if request.param == "one-core" else 2)


@dataclass
class Sequence:
    """What is confirmed of a lane's tokens, and the drafts behind it; every tensor is [1, tokens, ...]."""

    confirmed: list[Tensors] = field(default_factory=list)
    drafts: list[Tensors] = field(default_factory=list)


def joined(tokens: list[Tensors]) -> Tensors:
    return tuple(torch.cat(parts, dim=1) for parts in zip(*tokens, strict=True))


def close(got: torch.Tensor, want: torch.Tensor, bar: float) -> None:
    error = (got.double() - want).abs().max() / want.abs().max()
    assert error <= bar, error


def run_steps(
    make: Callable[[int, int], Tensors], run: Run, define: Define, bank: torch.Tensor, pending: torch.Tensor,
    bar: float, counts: tuple[int, ...], seed: int = 0,
) -> None:  # fmt: skip
    """Steps of 1 + drafts tokens for each of `counts`, on rows in any order with padding, of any number of lanes.

    A lane begins from a slot's state; one begins anew where it had another sequence's drafts. At most one row leaves a
    checkpoint in entry 8, after any number of its confirmed tokens.
    """
    choose, starts = random.Random(seed), {lane: bank[4 + lane].clone() for lane in range(1, LANES)}
    sequences = {lane: Sequence() for lane in starts}
    for step, drafts in enumerate(counts):
        if step == 2:
            sequences[2], starts[2] = Sequence(), torch.zeros_like(bank[0])
        lanes = [*choose.sample(sorted(sequences), choose.randint(1, 3)), 0]
        choose.shuffle(lanes)
        accepted = [choose.randint(0, len(sequences[lane].drafts)) if lane else 0 for lane in lanes]
        begun = [bool(lane and sequences[lane].confirmed) for lane in lanes]
        starting = [not (lane and starts[lane].any()) and not old for lane, old in zip(lanes, begun, strict=True)]
        sources = [lane if old or not lane else 4 + lane for lane, old in zip(lanes, begun, strict=True)]
        row = choose.choice([n for n, lane in enumerate(lanes) if lane])
        after = choose.randint(1, accepted[row] + 1)
        rows = Verify(
            torch.tensor(starting), int32(*sources), int32(*lanes), int32(*accepted), int32(row, 0), int32(after, 1),
            int32(8, 0),
        )  # fmt: skip
        tokens = make(len(lanes), 1 + drafts)
        before = bank.clone()
        out, bank, pending = run(tokens, bank, pending, rows)
        for n, lane in enumerate(lanes):
            if not lane:
                continue
            own, sequence = [tuple(x[n : n + 1, t : t + 1] for x in tokens) for t in range(1 + drafts)], sequences[lane]
            held = len(sequence.confirmed)
            sequence.confirmed += [*sequence.drafts[: accepted[n]], own[0]]
            sequence.drafts = own[1:]
            every, start = joined(sequence.confirmed + sequence.drafts), starts[lane].double()[None]
            want, _ = define(every, start)
            close(out[n], want[0, -1 - drafts :], bar)
            close(bank[lane], define(joined(sequence.confirmed), start)[1][0], bar)
            if n == row:
                close(bank[8], define(joined(sequence.confirmed[: held + after]), start)[1][0], bar)
        for entry in range(1, 8):
            if entry not in lanes:
                assert torch.equal(bank[entry], before[entry])


def keys_of(correlation: float, batch: int, tokens: int, seed: int) -> torch.Tensor:
    shared = normal(1, 1, KEY_HEADS, D, seed=1)
    return correlation**0.5 * shared + (1 - correlation) ** 0.5 * normal(batch, tokens, KEY_HEADS, D, seed=seed)


@pytest.mark.parametrize(("correlation", "gate", "rate", "dtype"), [
    (0.0, None, None, torch.float32), (0.99, -1e-4, 0.999, torch.float32), (1.0, -8.0, 0.9, torch.float32),
    (1.0, "mixed", 0.999, torch.float32), (0.9, None, None, torch.bfloat16),
])  # fmt: skip
def test_delta_rule(
    kernels: Kernels, correlation: float, gate: float | str | None, rate: float | None, dtype: torch.dtype
) -> None:
    seeds = iter(range(2, 1000))

    def make(batch: int, tokens: int) -> Tensors:
        g, beta = -(normal(batch, tokens, HEADS, seed=next(seeds)) - 2).exp(), torch.rand(batch, tokens, HEADS)
        if gate == "mixed":  # a difference of running sums of these would lose the small ones
            g = torch.where(normal(batch, tokens, HEADS, seed=next(seeds)) > 0, -1e-4, -50.0)
        elif gate is not None:
            g = torch.full_like(g, float(gate))
        if rate is not None:
            beta = torch.full_like(beta, rate)
        k = keys_of(correlation, batch, tokens, next(seeds))
        q = normal(batch, tokens, KEY_HEADS, D, seed=next(seeds))
        v = normal(batch, tokens, HEADS, D, seed=next(seeds))
        return q.to(dtype), k.to(dtype), v.to(dtype), g, beta

    def run(tokens: Tensors, bank: torch.Tensor, pending: torch.Tensor, rows: Verify) -> Tensors:
        q, k, v, g, beta = tokens
        return kernels.delta_rule_verify(q, k, v, g, beta, bank, pending, rows)

    def define(tokens: Tensors, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v, g, beta = tokens
        return gated_delta_rule_recurrent(q, k, v, g, beta, start)

    bank, pending = normal(ENTRIES, HEADS, D, D, seed=1), torch.zeros(LANES, DRAFTS, KEY_HEADS, factor_columns(D, D, 3))
    bank[0] = 0.0
    run_steps(make, run, define, bank, pending, 2e-5, (4, 4, 1, 3, 0, 2, 4, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolution(kernels: Kernels, dtype: torch.dtype) -> None:
    seeds, weight = iter(range(2, 1000)), normal(CHANNELS, 4, seed=1).to(dtype)

    def make(batch: int, tokens: int) -> Tensors:
        return (normal(batch, tokens, CHANNELS, seed=next(seeds)).to(dtype),)

    def run(tokens: Tensors, bank: torch.Tensor, pending: torch.Tensor, rows: Verify) -> Tensors:
        return kernels.conv_verify(tokens[0], weight, bank, pending, rows)

    def define(tokens: Tensors, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = tokens[0].double()
        return naive_causal_conv1d(x, start, weight.double()), torch.cat((start, x), dim=1)[:, -3:]

    bank, pending = normal(ENTRIES, 3, CHANNELS, seed=9).to(dtype), torch.zeros(LANES, DRAFTS, CHANNELS, dtype=dtype)
    bank[0] = 0.0
    bar = 5e-6 if dtype == torch.float32 else 2e-2
    run_steps(make, run, define, bank, pending, bar, (4, 4, 1, 3, 0, 2, 4, 4))


def test_a_row_that_starts_reads_nothing_stale(kernels: Kernels) -> None:
    """Whatever its lane's entry and its pending drafts hold."""
    bank, pending = torch.full((3, HEADS, D, D), 1e30), torch.full((2, DRAFTS, KEY_HEADS, factor_columns(D, D, 3)), 5.0)
    bank[0], pending[0] = 0.0, 0.0
    rows = Verify(int32(0) == 0, int32(1), int32(1), int32(0), int32(0), int32(1), int32(0))
    q, k, v = normal(1, 2, KEY_HEADS, D, seed=1), normal(1, 2, KEY_HEADS, D, seed=2), normal(1, 2, HEADS, D, seed=3)
    g, beta = -normal(1, 2, HEADS, seed=4).exp(), torch.rand(1, 2, HEADS)
    out, bank, pending = kernels.delta_rule_verify(q, k, v, g, beta, bank, pending, rows)
    want, _ = gated_delta_rule_recurrent(q, k, v, g, beta, torch.zeros(1, HEADS, D, D, dtype=torch.float64))
    close(out, want, 2e-5)
    assert bank[1].abs().max() < 100
    assert (pending[1, 1:] == 5.0).all()


def test_a_row_that_starts_convolves_nothing_stale(kernels: Kernels) -> None:
    bank, pending = torch.full((3, 3, CHANNELS), 1e30), torch.full((2, DRAFTS, CHANNELS), torch.nan)
    bank[0], pending[0] = 0.0, 0.0
    rows = Verify(int32(0) == 0, int32(1), int32(1), int32(0), int32(0), int32(1), int32(0))
    x, weight = normal(1, 2, CHANNELS, seed=1), normal(CHANNELS, 4, seed=2)
    y, bank, pending = kernels.conv_verify(x, weight, bank, pending, rows)
    close(y, naive_causal_conv1d(x.double(), torch.zeros(1, 3, CHANNELS).double(), weight.double()), 5e-6)
    assert torch.equal(bank[1], torch.cat((torch.zeros(2, CHANNELS), x[0, :1])))
    assert torch.equal(pending[1, 0], x[0, 1])
    assert pending[1, 1:].isnan().all()


def test_rows_that_one_launch_does_not_take(kernels: Kernels) -> None:
    """Thirteen rows of five tokens are two launches, by both kernels; each has a checkpoint, and a row of padding."""
    if kernels is TORCH:
        pytest.skip("what the kernels are compared with")
    batch = 13
    lanes, accepted = int32(0, *range(1, batch)), int32(0, *(n % (DRAFTS + 1) for n in range(1, batch)))
    rows = Verify(
        int32(0, 0, *[1] * (batch - 2)) == 0, int32(0, 7, *range(2, batch)), lanes, accepted,
        int32(12, 4, 0), int32(1, 5, 1), int32(batch, batch + 1, 0),
    )  # fmt: skip
    states, records = normal(batch + 2, HEADS, D, D, seed=1), normal(batch, DRAFTS, KEY_HEADS, factor_columns(D, D, 3))
    records = torch.cat((0.1 * records[..., : 4 * D], -records[..., 4 * D :].abs()), dim=-1)
    windows, inputs = normal(batch + 2, 3, CHANNELS, seed=2), normal(batch, DRAFTS, CHANNELS, seed=3)
    for bank in (states, records, windows, inputs):
        bank[0] = 0.0
    q, k = normal(batch, 5, KEY_HEADS, D, seed=4), normal(batch, 5, KEY_HEADS, D, seed=5)
    g, beta, v = -normal(batch, 5, HEADS, seed=6).exp(), torch.rand(batch, 5, HEADS), normal(batch, 5, HEADS, D, seed=7)
    x, weight = normal(batch, 5, CHANNELS, seed=8), normal(CHANNELS, 4, seed=9)
    for bar, name, before, args in (
        (2e-5, "delta_rule_verify", (states, records), (q, k, v, g, beta)),
        (5e-6, "conv_verify", (windows, inputs), (x, weight)),
    ):
        found, want = (getattr(form, name)(*args, *map(torch.clone, before), rows) for form in (kernels, TORCH))
        close(found[0][1:], want[0][1:].double(), bar)
        close(found[1][1:], want[1][1:].double(), bar)
        close(found[2][1:], want[2][1:].double(), bar)
        assert not found[1][0].any()
        assert not found[2][0].any()
