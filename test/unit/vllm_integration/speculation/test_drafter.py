"""How many drafts a request gets: what raises the tokens a second of the batch, by costs and rates that are known."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams

from qwen36_neuron.runtime import DraftRequest
from vllm_integration.requests import RequestState
from vllm_integration.speculation.acceptance import UNKNOWN, Acceptance
from vllm_integration.speculation.config import DraftLimits
from vllm_integration.speculation.costs import OUTLIER, SLOWER, Rate, StepCosts
from vllm_integration.speculation.drafter import PROBE_FIRST, PROBE_LAST, Drafter, Source

MTP = DraftLimits(mtp=3)


class Layer:
    """A runtime whose draft layer proposes 1, 2, 3, ...; what it was asked is kept."""

    def __init__(self, max_model_len: int = 1000) -> None:
        self.capacity = SimpleNamespace(max_model_len=max_model_len)
        self.asked: list[list[DraftRequest]] = []
        self.now, self.seconds = 0.0, 0.0

    def draft(self, requests: Sequence[DraftRequest]) -> tuple[tuple[int, ...], ...]:
        self.asked.append(list(requests))
        self.now += self.seconds * max(request.count for request in requests)
        return tuple(tuple(range(1, 1 + request.count)) for request in requests)


def costs(plain: float = 1.0, position: float = 0.1, draft: float = 0.05, rows: int = 1) -> StepCosts:
    made = StepCosts()
    made.plain.observe(rows, plain)
    made.position.observe(rows, position)
    made.draft.observe(rows, draft)
    return made


def state(name: str = "r", output: int = 10, prompt: Sequence[int] = range(100, 140), **params: Any) -> RequestState:
    made = RequestState(name, SamplingParams(**{"max_tokens": 500, "ignore_eos": True, **params}), list(prompt))
    made.output += range(500, 500 + output)
    made.given = 1
    return made


def drafter_of(layer: Layer, limits: DraftLimits, known: StepCosts) -> Drafter:
    """By a clock that goes on while drafts are made, as fast as is known of them."""
    layer.seconds = known.draft.of(1)
    return Drafter(layer, limits, known, clock=lambda: layer.now)  # type: ignore[arg-type]


WRONG = 9999
"""A token that nobody proposes."""


def gave(one: RequestState, drafts: Sequence[int], tokens: Sequence[int]) -> None:
    """A step that verified `drafts` gave these tokens. Its output stays as long as it is."""
    one.drafts, one.given, one.start, one.end = tuple(drafts), len(tokens), 0, 1
    one.output[-len(tokens) :] = tokens


def verify(drafter: Drafter, one: RequestState, rights: float, seed: int, steps: int = 60) -> list[int]:
    """Steps of a request whose drafts are right so often; how many drafts each had."""
    chance, counts = random.Random(seed), []
    for _ in range(steps):
        (drafts,) = drafter.draft([one])
        counts.append(len(drafts))
        accepted = 0
        while accepted < len(drafts) and chance.random() < rights:
            accepted += 1
        gave(one, drafts, [*drafts[:accepted], WRONG])
        drafter.stepped([one], 1.0 + 0.1 * len(drafts))
    return counts


def test_drafts_that_are_right_get_as_many_as_there_are() -> None:
    counts = verify(drafter_of(Layer(), MTP, costs()), state(), 1.0, seed=1)
    assert sorted(counts[10:]) == [0] + [3] * 49  # one step goes without, to know what that costs


def test_drafts_that_are_wrong_get_none_but_a_probe_now_and_then() -> None:
    counts = verify(drafter_of(Layer(), MTP, costs()), state(), 0.0, seed=1, steps=600)
    assert set(counts[20:]) == {0, 1}
    probes = [step for step, count in enumerate(counts) if step > 20 and count]
    gaps = [b - a for a, b in pairwise(probes)]
    assert PROBE_FIRST < gaps[0] <= gaps[-1] == PROBE_LAST
    assert len(probes) <= 600 / 60


def test_a_request_whose_drafts_become_right_gets_them_again() -> None:
    drafter, one = drafter_of(Layer(), MTP, costs()), state()
    verify(drafter, one, 0.0, seed=1, steps=100)
    counts = verify(drafter, one, 1.0, seed=1, steps=400)
    assert counts[-100:].count(3) >= 95


def test_what_is_tried_is_tried_together_and_takes_a_fiftieth_of_the_time() -> None:
    """Eight rows whose drafts are always wrong: a step with any draft costs half a step more, whoever has it."""
    known = costs(plain=1.0, position=0.05, draft=0.2, rows=8)
    known.verify.observe(8, 0.5)
    drafter, states = drafter_of(Layer(), MTP, known), [state(str(i), max_tokens=9000) for i in range(8)]
    for kind in range(3):
        for _ in range(500):
            drafter._rates[Source.MTP].observe(kind, False)
    tried, seconds = [], 0.0
    for _ in range(2000):
        drafts = drafter.draft(states)
        count = sum(map(len, drafts))
        tried.append(count)
        taken = 1.0 + (0.5 + 0.05 * count if count else 0.0)
        seconds += taken - 1.0 + (0.2 if count else 0.0)
        for one, own in zip(states, drafts, strict=True):
            gave(one, own, [WRONG])
            one.output.append(WRONG)
        drafter.stepped(states, taken)
    assert min(count for count in tried if count) >= 4
    assert 10 <= sum(count > 0 for count in tried) <= 60
    assert 0 < seconds <= 0.03 * 2000


def test_a_machine_that_was_busy_for_a_while_does_not_end_drafting() -> None:
    """Steps with drafts take long for a while, so none are made. Nothing but time tells that it has passed."""
    known = costs()
    drafter, one = drafter_of(Layer(), MTP, known), state(max_tokens=9000)
    for kind in range(3):
        for _ in range(200):
            drafter._rates[Source.MTP].observe(kind, True)
    for _ in range(30):
        known.position.observe(1, 4.0)
    drafter._off = 3.0
    assert verify(drafter, one, 1.0, seed=1, steps=20).count(0) >= 15
    assert verify(drafter, one, 1.0, seed=1, steps=600)[-100:].count(3) >= 95


@pytest.mark.parametrize("slower", [3.0, 10.0, 30.0])
def test_a_start_on_a_busy_machine_does_not_end_drafting(slower: float) -> None:
    """All was measured so many times too slow, tries too dear to be made: plain steps tell what to make of it."""
    layer, known = Layer(), costs(slower, 0.1 * slower, 0.05 * slower)
    known.verify.observe(1, slower)
    drafter = drafter_of(layer, MTP, known)
    layer.seconds = 0.05
    assert verify(drafter, state(max_tokens=9000), 1.0, seed=1, steps=600)[-100:].count(3) >= 95


def test_plain_steps_that_become_slower_make_drafts_no_dearer() -> None:
    known = costs()
    for _ in range(200):
        known.ran(1, 0, 5.0)
    assert known.position.of(1) == pytest.approx(0.1)
    assert known.plain.of_first(1) == 1.0
    assert known.plain.of_first(8) == 1.0


@pytest.mark.parametrize(
    ("position", "draft", "expected"), [(0.01, 0.01, 3), (0.3, 0.15, 1), (0.6, 0.3, 0), (0.4, 0.15, 1), (0.45, 0.17, 0)]
)
def test_as_many_as_what_they_cost_leaves(position: float, draft: float, expected: int) -> None:
    """Of drafts that are right two times in three: 0.67, 0.44 and 0.30 tokens each, at a token a second without.

    A twentieth must be gained: 1.67 tokens in 1.55 seconds are, in 1.62 they are not.
    """
    drafter = drafter_of(Layer(), MTP, costs(position=position, draft=draft))
    one = state()
    for _ in range(200):
        for kind in range(3):
            for right in (True, True, False):
                drafter._history(one).rates[Source.MTP].observe(kind, right)
    assert len(drafter.draft([one])[0]) == expected


def test_a_batch_that_fills_the_machine_stops_drafting() -> None:
    """A further position costs eight rows a fifth of what each pays for its own; alone it is almost free."""
    for rows, position, expected in ((1, 0.02, 3), (8, 0.9, 0)):
        drafter = drafter_of(Layer(), MTP, costs(plain=float(rows), position=position, draft=0.02, rows=rows))
        states = [state(str(i)) for i in range(rows)]
        assert [len(drafts) for drafts in drafter.draft(states)] == [expected] * rows


def test_each_request_has_its_own() -> None:
    layer = Layer()
    drafter = drafter_of(layer, MTP, costs(rows=2))
    good, bad = state("good"), state("bad")
    for kind in range(3):
        for _ in range(50):
            drafter._history(good).rates[Source.MTP].observe(kind, True)
            drafter._history(bad).rates[Source.MTP].observe(kind, False)
    assert drafter.draft([good, bad]) == [[1, 2, 3], []]
    assert [[request.request_id for request in asked] for asked in layer.asked] == [["good"]]
    assert layer.asked[0][0].tokens == tuple(good.output[-1:])


@pytest.mark.parametrize(("left", "expected"), [(1, 0), (2, 1), (3, 2), (9, 3)])
def test_no_more_than_can_be_given(left: int, expected: int) -> None:
    fixed = DraftLimits(mtp=3, adaptive=False)
    assert len(drafter_of(Layer(), fixed, StepCosts()).draft([state(max_tokens=10 + left)])[0]) == expected
    assert len(drafter_of(Layer(50 + left), fixed, StepCosts()).draft([state()])[0]) == expected


def test_a_request_that_has_ended_gets_none() -> None:
    one = state(stop_token_ids=[509])
    assert drafter_of(Layer(), DraftLimits(mtp=3, adaptive=False), StepCosts()).draft([one]) == [[]]


def test_what_repeats_is_looked_up_and_chosen_where_it_gives_more() -> None:
    layer = Layer()
    drafter = drafter_of(layer, DraftLimits(mtp=3, lookup=16), costs())
    one = state(prompt=list(range(500, 530)), output=10)
    for _ in range(50):
        drafter._rates[Source.LOOKUP].observe((10).bit_length(), True)
    assert drafter.draft([one]) == [list(range(510, 526))]
    assert not layer.asked
    for _ in range(50):
        drafter._history(one).rates[Source.LOOKUP].observe((10).bit_length(), False)
        for kind in range(3):
            drafter._history(one).rates[Source.MTP].observe(kind, True)
    assert drafter.draft([one]) == [[1, 2, 3]]


def test_drafts_that_a_grammar_cuts_off_are_wrong_ones() -> None:
    """The draft layer was right until now; a grammar allows none of its drafts, but what the text repeats."""
    drafter = drafter_of(Layer(), DraftLimits(mtp=3, lookup=3), costs())
    for _ in range(100):
        drafter._rates[Source.MTP].observe(0, True)
    one, right = state(output=0, prompt=[*range(100, 140)] * 2, max_tokens=5000), 0
    one.output += range(100, 104)
    for step in range(60):
        (drafts,) = drafter.draft([one])
        expected = [100 + (len(one.output) + place) % 40 for place in range(len(drafts) + 1)]
        kept = list(drafts) if drafts == expected[:-1] else []
        one.drafts, one.given, one.start, one.end = tuple(kept), len(kept) + 1, 0, 1
        one.output += expected[: len(kept) + 1]
        drafter.stepped([one], 1.0 + 0.1 * len(kept))
        right += bool(kept) and step >= 10
    assert right >= 45


@pytest.mark.parametrize(("token", "expected"), [(1, 1.0), (WRONG, 0.0)])
def test_a_draft_that_was_cut_off_is_judged_by_the_token_that_came(token: int, expected: float) -> None:
    drafter, one = drafter_of(Layer(), MTP, costs()), state()
    (drafts,) = drafter.draft([one])
    gave(one, [], [token])
    drafter.stepped([one], 1.0)
    rates = drafter._rates[Source.MTP]
    assert (rates.right, rates.tried) == ({0: expected}, {0: 1.0})
    assert drafts[0] == 1


def test_a_step_that_gives_nothing_says_nothing_of_drafts() -> None:
    """A request that was preempted runs its tokens again, a part at a time."""
    drafter, one = drafter_of(Layer(), MTP, costs()), state()
    drafter.draft([one])
    one.drafts, one.given, one.start, one.end = (), 0, 0, 32
    drafter.stepped([one], 1.0)
    assert not drafter._rates[Source.MTP].tried
    gave(one, [], [1])
    drafter.stepped([one], 1.0)
    assert drafter._rates[Source.MTP].right == {0: 1.0}


def test_rates_start_from_what_is_known_of_others() -> None:
    every = Acceptance(0.99)
    assert every.rate(0) == UNKNOWN
    first = Acceptance(0.9, every)
    for _ in range(100):
        first.observe(0, True)
    second = Acceptance(0.9, every)
    assert second.rate(0) > 0.95
    for _ in range(10):
        second.observe(0, False)
    assert second.rate(0) < 0.35
    assert first.rate(0) > 0.9


def test_one_slow_step_says_little() -> None:
    rate = Rate()
    rate.observe(1, 1.0)
    rate.observe(1, 1000.0)
    assert rate.of(1) == pytest.approx(1.0 + SLOWER * (OUTLIER - 1.0))
    assert (rate.of(8), Rate().of(3)) == (rate.of(1), 0.0)
