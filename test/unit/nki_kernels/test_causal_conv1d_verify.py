"""The convolution of a token and drafts, step by step, and its twin, against a direct fp64 sum of what is confirmed."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from nki_kernels import examples
from nki_kernels.causal_conv1d_relations import PAST, TAPS, relations, sequences_at_once
from nki_kernels.causal_conv1d_verify import causal_conv1d_verify
from nki_kernels.causal_conv1d_verify_torch import causal_conv1d_verify_torch
from nki_kernels.interpreter import profile
from qwen36_neuron.ops.causal_conv1d.verify import causal_conv1d_verify as definition

FORMS = [causal_conv1d_verify, causal_conv1d_verify[2], causal_conv1d_verify_torch]
NAMES = ["kernel", "two cores", "twin"]
BARS = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
"""Of the largest value: sums of four products in fp32 and SiLU; bfloat16 outputs are rounded once, by 2^-8 at most."""
MARK = 5.0


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


@dataclass
class Bank:
    """Windows in entries, drafts by lane; sequence b is in entry and lane b + 1, checkpoints come behind them.

    Attributes:
        text: [B, tokens, C], every token that a sequence will have been given, confirmed ones only.
        held: confirmed tokens that a window follows; drafted: the inputs behind them that are kept.
    """

    count: int
    drafts: int
    channels: int = 256
    checks: int = 1
    dtype: torch.dtype = torch.float32
    held: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.text = normal(self.count, 40, self.channels, seed=1).to(self.dtype)
        self.weight = normal(self.channels, TAPS, seed=2).to(self.dtype)
        self.lanes = torch.full((1 + self.count + self.checks, PAST, self.channels), MARK, dtype=self.dtype)
        self.pending = torch.full((1 + self.count, self.drafts, self.channels), MARK, dtype=self.dtype)
        self.lanes[0], self.pending[0] = 0.0, 0.0
        self.lanes[1 : 1 + self.count] = normal(self.count, PAST, self.channels, seed=3).to(self.dtype)
        self.joined = torch.cat((self.lanes[1 : 1 + self.count], self.text), dim=1)
        self.held = [0] * self.count

    def step(self, form, tokens, accepted, kept=(), sources=None, absent=()):
        """One launch that takes in `accepted` drafts of each sequence; returns y [B, tokens, C].

        Args:
            kept: (sequence, tokens after which its window is a checkpoint) of each checkpoint that is taken.
            sources: entries that windows are read from, where not the sequences' own.
            absent: sequences of which nothing is stored.
        """
        first = [held + a for held, a in zip(self.held, accepted, strict=True)]
        x = torch.stack([self.text[b, at : at + tokens] for b, at in enumerate(first)])
        lanes = list(range(1, self.count + 1))
        old = [entry * PAST + n for entry in sources or lanes for n in range(PAST)]
        drafted = [
            lane * self.drafts + n if n < right else 0
            for lane, right in zip(lanes, accepted, strict=True)
            for n in range(self.drafts)
        ]
        row, after, to = [0] * self.checks, [1] * self.checks, [len(self.lanes)] * self.checks
        for n, (b, tokens_before) in enumerate(kept):
            row[n], after[n], to[n] = b, tokens_before, 1 + self.count + n
        write = [len(self.lanes) if b in absent else b + 1 for b in range(self.count)]
        keep = [len(self.pending) if b in absent else b + 1 for b in range(self.count)]
        table = relations(int32(*accepted), tokens, self.drafts, int32(*row), int32(*after)).to(self.dtype)
        held = int32(*old, *drafted).view(-1, 1)
        y, windows, pending = form(
            x, self.lanes, self.pending, self.weight, table, held, int32(*write, *to, *keep).view(1, -1)
        )
        assert torch.equal(windows, self.lanes)
        assert torch.equal(pending.nan_to_num(), self.pending.nan_to_num())
        self.held = [at + 1 for at in first]
        return y

    def check(self, y, b):
        """Outputs of the last launch, and the window and the drafts that it left."""
        tokens, end = y.shape[1], self.held[b]
        want = self.direct(b)[end - 1 : end - 1 + tokens]
        assert np.abs(y[b].double().numpy() - want).max() <= BARS[self.dtype] * np.abs(want).max()
        assert torch.equal(self.lanes[b + 1], self.joined[b, end : end + PAST])
        assert torch.equal(self.pending[b + 1, : tokens - 1], self.text[b, end : end - 1 + tokens])

    def direct(self, b):
        """[tokens, C] of all, tap by tap, fp64."""
        joined, weight = self.joined[b].double().numpy(), self.weight.double().numpy()
        y = sum(joined[d : len(joined) - PAST + d] * weight[:, d] for d in range(TAPS))
        return y / (1 + np.exp(-y))


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize(("tokens", "batch"), [(1, 2), (2, 1), (2, 5), (3, 3), (5, 1), (5, 8)])
def test_every_number_of_accepted_drafts(form, dtype, tokens, batch):
    bank = Bank(batch, 4, dtype=dtype)
    for shift in range(tokens + 1):
        accepted = [(b + shift) % tokens if shift else 0 for b in range(batch)]
        y = bank.step(form, tokens, accepted)
        for b in range(batch):
            bank.check(y, b)
    assert (bank.lanes[-1] == MARK).all()
    assert (bank.pending[1:, tokens - 1 :] == MARK).all()
    assert not bank.lanes[0].any()
    assert not bank.pending[0].any()


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize("dtype", BARS)
def test_checkpoints_of_accepted_drafts_and_of_the_token(form, dtype):
    """After one of the drafts taken in, after the row's own token; the last place is not asked for."""
    bank = Bank(3, 4, checks=4, dtype=dtype)
    bank.step(form, 5, [0, 0, 0])
    kept = ((1, 1), (0, 4), (2, 3))
    y = bank.step(form, 4, [3, 4, 2], kept)
    for b in range(3):
        bank.check(y, b)
    for n, (b, after) in enumerate(kept):
        assert torch.equal(bank.lanes[4 + n], bank.joined[b, 1 + after : 1 + after + PAST])
    assert (bank.lanes[7] == MARK).all()


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_other_sources_and_rows_that_nobody_needs(form):
    """A window from another entry, one from the zero entry, and a row of which nothing is stored."""
    bank = Bank(3, 4)
    bank.joined[1, :PAST] = bank.joined[0, :PAST]
    bank.joined[2, :PAST] = 0.0
    bank.lanes[2], bank.lanes[3] = MARK, MARK
    before = bank.lanes.clone(), bank.pending.clone()
    y = bank.step(form, 3, [0, 0, 0], sources=[1, 1, 0], absent=(0,))
    for b in (1, 2):
        bank.check(y, b)
    for now, then in zip((bank.lanes, bank.pending), before, strict=True):
        assert torch.equal(now[:2], then[:2])


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_what_is_not_taken_in_is_not_read(form):
    """Drafts that were wrong may have left anything."""
    bank = Bank(2, 4)
    bank.pending[1:] = torch.nan
    bank.step(form, 2, [0, 0])
    y = bank.step(form, 5, [0, 1])
    for b in range(2):
        bank.check(y, b)


@pytest.mark.parametrize("dtype", BARS)
def test_the_operations_of_graphs_give_the_same(dtype):
    bank = Bank(4, 4, checks=2, dtype=dtype)
    bank.step(causal_conv1d_verify, 5, [0, 0, 0, 0])
    accepted, after, old = [0, 2, 4, 1], [1, 2, 5, 1], (bank.lanes.clone(), bank.pending.clone())
    x = torch.stack([bank.text[b, 1 + a : 4 + a] for b, a in enumerate(accepted)])
    y = bank.step(causal_conv1d_verify, 3, accepted, ((2, 5), (1, 2)))
    want, left, kept = definition(x, old[0][1:5], old[1][1:], int32(*accepted), int32(*after), bank.weight)
    assert (y.float() - want.float()).abs().max() <= BARS[dtype] * want.float().abs().max()
    assert torch.equal(bank.lanes[1:5], left)
    assert torch.equal(bank.lanes[5:], kept[[2, 1]])


@pytest.mark.parametrize(("tokens", "drafts", "channels"), [(9, 8, 128), (43, 42, 128), (2, 1, 1280)])
def test_as_many_sequences_as_one_launch_takes(tokens, drafts, channels):
    batch = sequences_at_once(tokens, drafts, 1)
    assert (batch + 1) * (PAST + drafts + tokens) > 128 or (batch + 2) * PAST > 128
    bank = Bank(batch, drafts, channels)
    bank.text = normal(batch, 3 * tokens, channels, seed=4)
    bank.joined = torch.cat((bank.lanes[1 : 1 + batch], bank.text), dim=1)
    for accepted in ([0] * batch, [n % tokens for n in range(batch)]):
        y = bank.step(causal_conv1d_verify, tokens, accepted, ((batch - 1, 1),))
        for b in range(batch):
            bank.check(y, b)


def test_sequences_that_do_not_fit():
    assert sequences_at_once(5, 4, 1) == 10
    assert sequences_at_once(2, 1, 30) == 12
    assert sequences_at_once(64, 63, 1) == 0
    with pytest.raises(AssertionError, match="11 sequences of 5 tokens and 4 drafts are over 128 rows"):
        Bank(11, 4).step(causal_conv1d_verify, 5, [0] * 11)
    with pytest.raises(AssertionError, match="44 windows to leave, at most 42"):
        Bank(1, 4, checks=43).step(causal_conv1d_verify, 2, [0])


def price(example):
    return profile(example.kernel, *example.args)[1].time_us


@pytest.mark.parametrize(("batch", "bar"), [(1, 13), (8, 18)])
@pytest.mark.parametrize("tokens", [2, 5])
def test_modelled_price(batch, bar, tokens):
    """Waiting and issuing transfers bind, not the number of drafts."""
    assert price(examples.conv_verify(batch, tokens)) <= bar
