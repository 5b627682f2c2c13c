"""Verification of drafts, step by step, and its twin, against the fp64 recurrence over what is confirmed."""

from dataclasses import dataclass, field

import pytest
import torch

from nki_kernels import examples
from nki_kernels.delta_rule_relations import relations, sequences_at_once
from nki_kernels.gated_delta_rule_verify import gated_delta_rule_verify
from nki_kernels.gated_delta_rule_verify_torch import gated_delta_rule_verify_torch
from nki_kernels.interpreter import profile
from qwen36_lab.pricing.delta_rule_cases import Case, make_case, recurrence, worst

FORMS = [gated_delta_rule_verify, gated_delta_rule_verify[2], gated_delta_rule_verify_torch]
NAMES = ["kernel", "two cores", "twin"]
BAR, MARK = 2e-5, 5.0


@dataclass
class Bank:
    """States in entries, records by lane; sequence b is in entry and lane b + 1, checkpoints come behind them.

    Attributes:
        cases: of each sequence, all tokens that it will have been given, from its state at the start.
        held: confirmed tokens in the state; drafted: the tokens behind them whose records are kept.
    """

    cases: list[Case]
    drafts: int
    checks: int = 1
    dtype: torch.dtype = torch.float32
    held: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        count, (heads, *size) = len(self.cases), self.cases[0].state.shape
        key_heads, share = self.cases[0].k.shape[1], heads // self.cases[0].k.shape[1]
        self.states = torch.full((1 + count + self.checks, heads, *size), MARK)
        self.states[0] = 0.0
        self.states[1 : 1 + count] = torch.stack([case.state for case in self.cases])
        self.records = torch.full((1 + count, self.drafts, key_heads, 128 + 129 * share), MARK)
        self.records[0] = 0.0
        self.held, self.drafted = [0] * count, [0] * count
        self.exact = [recurrence(case) for case in self.cases]

    def step(self, form, tokens, accepted, kept=(), sources=None, absent=()):
        """One launch that takes in `accepted` drafts of each sequence; returns o [B, tokens, H, D].

        Args:
            kept: (sequence, tokens after which its state is a checkpoint) of each checkpoint that is taken.
            sources: entries that states are read from, where not the sequences' own.
            absent: sequences of which nothing is stored.
        """
        count, total = len(self.cases), len(self.states)
        first = [held + a for held, a in zip(self.held, accepted, strict=True)]
        rows = [case.cut(at, at + tokens, case.state) for case, at in zip(self.cases, first, strict=True)]
        inputs = [torch.stack([row.tensors[n] for row in rows]) for n in range(5)]
        inputs[:3] = [x.to(self.dtype) for x in inputs[:3]]
        taken = [*accepted, *[0] * self.checks]
        lanes = [*range(1, count + 1), *[0] * self.checks]
        row, whole = [0] * self.checks, [False] * self.checks
        read = [*(sources or lanes[:count]), *[0] * self.checks]
        write = [total if b in absent else b + 1 for b in range(count)] + [total] * self.checks
        for n, (b, after) in enumerate(kept):
            row[n], whole[n] = b, after > accepted[b]
            taken[count + n], lanes[count + n] = min(after, accepted[b]), b + 1
            read[count + n], write[count + n] = read[b], 1 + count + n
        held = [
            lane * self.drafts + n if n < most else 0
            for lane, most in zip(lanes, taken, strict=True)
            for n in range(self.drafts)
        ]
        keep = [len(self.records) if b in absent else b + 1 for b in range(count)]
        table = relations(count, tokens, self.drafts, torch.tensor(row, dtype=torch.int32), torch.tensor(whole))
        places = torch.tensor([[*read, *write, *keep]], dtype=torch.int32)
        o, states, records = form(
            *inputs, self.states, self.records, table, places, torch.tensor(held, dtype=torch.int32).view(-1, 1)
        )
        assert torch.equal(states, self.states)
        assert torch.equal(records.nan_to_num(), self.records.nan_to_num())
        self.held, self.drafted = [at + 1 for at in first], [tokens - 1] * count
        return o

    def check(self, o, b, bar=BAR):
        """Outputs of the last launch, and the state that it left."""
        out, states = self.exact[b]
        assert worst(o[b], out[self.held[b] - 1 : self.held[b] + self.drafted[b]]) <= bar
        assert worst(self.states[b + 1], states[self.held[b] - 1]) <= bar


def cases(count, tokens, correlation=0.0, beta=None, gate=None, key_heads=2, heads=6):
    return [make_case(tokens, key_heads, heads, correlation, beta, gate, seed) for seed in range(count)]


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize(("tokens", "batch"), [(1, 2), (2, 1), (2, 5), (3, 3), (4, 2), (5, 1), (5, 8)])
def test_every_number_of_accepted_drafts(form, tokens, batch):
    bank = Bank(cases(batch, 2 + 3 * tokens, 0.9), 4)
    for accepted in ([0] * batch, [n % tokens for n in range(batch)], [(n + 1) % tokens for n in range(batch)]):
        o = bank.step(form, tokens, accepted)
        for b in range(batch):
            bank.check(o, b)
    assert (bank.states[-1] == MARK).all()
    assert (bank.records[1:, tokens - 1 :] == MARK).all()


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize(("correlation", "beta", "gate"), [
    (0.99, 0.999, -1e-4), (1.0, 0.999, -1e-4), (1.0, 0.5, -8.0), (1.0, 0.999, -50.0), (0.9, None, None),
])  # fmt: skip
def test_hostile_inputs(form, correlation, beta, gate):
    bank = Bank(cases(3, 24, correlation, beta, gate), 4)
    for accepted in ([0, 0, 0], [4, 2, 0], [3, 4, 1], [4, 4, 4]):
        o = bank.step(form, 5, accepted)
        for b in range(3):
            bank.check(o, b)


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize("correlation", [0.0, 1.0])
def test_gates_that_end_all_and_gates_that_keep_all(form, correlation):
    """A difference of running sums of these gates would have lost the small ones."""
    made = cases(2, 20, correlation, 0.999)
    for n, case in enumerate(made):
        case.g.fill_(-1e-4)
        case.g[n::4], case.g[2 + n :: 8] = -50.0, -8.0
    bank = Bank(made, 4)
    for accepted in ([0, 0], [4, 3], [1, 4], [2, 4]):
        o = bank.step(form, 5, accepted)
        for b in range(2):
            bank.check(o, b)


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_checkpoints_of_accepted_drafts_and_of_the_token(form):
    """After one of the drafts taken in, after the row's own token; the last place is not asked for."""
    bank = Bank(cases(3, 12, 0.9), 4, checks=4)
    bank.step(form, 5, [0, 0, 0])
    kept = ((1, 1), (0, 4), (2, 3))
    o = bank.step(form, 4, [3, 4, 2], kept)
    for b in range(3):
        bank.check(o, b)
    for n, (b, after) in enumerate(kept):
        assert worst(bank.states[4 + n], bank.exact[b][1][after]) <= BAR
    assert (bank.states[7] == MARK).all()


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_other_sources_and_rows_that_nobody_needs(form):
    """A state from another entry, one from the zero entry, and a row of which nothing is stored."""
    made = cases(3, 5)
    made[1].state.copy_(made[0].state)
    made[2].state.zero_()
    bank = Bank(made, 4)
    bank.states[2], bank.states[3] = MARK, MARK
    before = bank.states.clone(), bank.records.clone()
    o = bank.step(form, 3, [0, 0, 0], sources=[1, 1, 0], absent=(0,))
    for b in (1, 2):
        bank.check(o, b)
    assert torch.equal(bank.states[1], before[0][1])
    assert torch.equal(bank.records[1], before[1][1])
    assert not bank.states[0].any()
    assert not bank.records[0].any()


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_bfloat16_inputs_lose_nothing(form):
    bank = Bank([case.cast(torch.bfloat16) for case in cases(2, 10, 0.9)], 4, dtype=torch.bfloat16)
    for accepted in ([0, 0], [4, 2]):
        o = bank.step(form, 5, accepted)
        for b in range(2):
            bank.check(o, b)


def test_what_is_not_taken_in_is_not_read():
    """Records of drafts that were wrong may hold anything."""
    bank = Bank(cases(2, 8), 4)
    bank.records[1:] = torch.nan
    o = bank.step(gated_delta_rule_verify, 2, [0, 0])
    o = bank.step(gated_delta_rule_verify, 5, [0, 1])
    for b in range(2):
        bank.check(o, b)


@pytest.mark.parametrize(
    ("key_heads", "heads", "drafts", "batch"), [(8, 32, 4, 2), (1, 30, 4, 2), (12, 36, 1, 1), (2, 6, 41, 1)]
)
def test_many_heads_and_many_drafts(key_heads, heads, drafts, batch):
    assert sequences_at_once(drafts + 1, drafts, 1, heads) >= batch
    bank = Bank(cases(batch, 2 * drafts + 3, 0.9, 0.9, -1e-2, key_heads, heads), drafts)
    for accepted in ([0] * batch, [drafts - 1] * batch):
        o = bank.step(gated_delta_rule_verify, drafts + 1, accepted)
        for b in range(batch):
            bank.check(o, b)


def test_as_many_sequences_as_one_launch_takes():
    """More groups than two, rows in every partition."""
    batch = sequences_at_once(5, 4, 1, 6)
    assert batch == 12  # new tokens bind: 64 are turned together
    bank = Bank(cases(batch, 11, 0.9), 4)
    for accepted in ([0] * batch, [n % 5 for n in range(batch)]):
        o = bank.step(gated_delta_rule_verify, 5, accepted, ((batch - 1, 1),))
    for b in range(batch):
        bank.check(o, b)
    with pytest.raises(AssertionError, match="14 sequences of 5 tokens and 4 drafts are over 128 rows"):
        Bank(cases(14, 5), 4).step(gated_delta_rule_verify, 5, [0] * 14)


def test_sequences_that_do_not_fit():
    assert sequences_at_once(2, 1, 1, 6) == 28
    assert sequences_at_once(5, 4, 8, 6) == 10
    assert sequences_at_once(5, 4, 1, 48) == 0
    assert sequences_at_once(64, 63, 1, 1) == 0
    assert sequences_at_once(5, 4, 32, 1) == 0


def price(example):
    return profile(example.kernel, *example.args)[1].time_us


@pytest.mark.parametrize(("batch", "bar"), [(1, 20), (8, 40)])
@pytest.mark.parametrize("tokens", [2, 3, 4, 5])
def test_modelled_price(batch, bar, tokens):
    """A state moves once, so more tokens cost little: less than as many steps of one token at any number."""
    us = price(examples.verify(batch, tokens))
    assert us <= bar
    assert us <= tokens * price(examples.decode(batch))


def test_modelled_price_of_a_checkpoint():
    assert price(examples.verify(8, 4, 1)) <= price(examples.verify(8, 4)) + 3
