"""What the estimator learns."""

from __future__ import annotations

from qwen36_neuron.apc import Kind
from qwen36_neuron.apc.groups import Continued, Group, used_group
from qwen36_neuron.apc.record import FADE, PrefixUses
from qwen36_neuron.apc.reuse import EXPECTED, ReuseEstimator

PREAMBLE, END = Group(Kind.PREAMBLE, None, 4), Group(Kind.PROMPT_END, Kind.PREAMBLE, 4)


def test_before_anything_is_seen() -> None:
    estimator = ReuseEstimator(10)
    assert all(estimator.record(Group(trait, None)).chance == EXPECTED[trait] for trait in EXPECTED)


def test_every_trait_has_an_expectation_of_its_own() -> None:
    assert set(EXPECTED) == {*Kind, *Continued}


def test_a_group_that_is_used_rises_and_one_that_is_not_sinks() -> None:
    estimator = ReuseEstimator(1000)
    for index in range(20):
        estimator.waits(("preamble", index), PREAMBLE)
        estimator.waits(("end", index), END)
        estimator.used(("preamble", index))
    assert estimator.record(PREAMBLE).chance > 0.95
    assert estimator.record(END).chance < 0.01


def test_groups_of_one_trait_lend_each_other_what_they_know() -> None:
    estimator = ReuseEstimator(1000)
    for index in range(20):
        estimator.waits(index, END)
    assert estimator.record(Group(Kind.PROMPT_END, Kind.TURN_END, 4)).chance < EXPECTED[Kind.PROMPT_END] / 10


def test_only_the_deepest_remembered_prefix_counts_as_missed() -> None:
    estimator = ReuseEstimator(10)
    for key in "abc":
        estimator.waits(key, END)
    estimator.missed(path=["a", "b", "c", "d"], limit=2, below=0)
    assert estimator.group("b") == used_group(Kind.PROMPT_END, 1)
    assert estimator.group("a") == estimator.group("c") == END
    estimator.missed(path=["a", "x"], limit=2, below=1)
    assert estimator.group("a") == END


def test_a_forgotten_wait_leaves_no_trace() -> None:
    estimator, turn = ReuseEstimator(10), Group(Kind.TURN_END, None, 4)
    for key in range(5):
        estimator.waits(key, turn)
        estimator.forget(key, Kind.TURN_END)
    assert estimator.record(turn).chance == EXPECTED[Kind.TURN_END]
    estimator.waits("used", turn)
    estimator.used("used")
    estimator.waits("used", used_group(Kind.TURN_END, 1))
    estimator.forget("used", Kind.TURN_END)
    assert estimator.group("used") is not None


def test_memory_is_bounded_and_the_first_to_wait_goes() -> None:
    estimator = ReuseEstimator(3)
    for key in range(5):
        estimator.waits(key, END)
    assert [estimator.group(key) is not None for key in range(5)] == [False, False, True, True, True]


def test_a_changed_load_is_learned_anew() -> None:
    estimator = ReuseEstimator(10)
    for index in range(10 * FADE):
        estimator.waits(index, END)
    for index in range(2 * FADE):
        estimator.waits(("new", index), END)
        estimator.used(("new", index))
    assert estimator.record(END).chance > 0.7


def test_the_rate_falls_with_age_and_slower_where_waits_are_long() -> None:
    def learned(wait: int) -> ReuseEstimator:
        estimator = ReuseEstimator(100)
        for index in range(20):
            estimator.waits(index, PREAMBLE)
            estimator.now += wait
            estimator.used(index)
        return estimator

    short, long = learned(2), learned(20)
    brief, lasting = short.record(PREAMBLE).forecast(), long.record(PREAMBLE).forecast()
    rates = [brief.rate(age) for age in range(0, 60, 5)]
    assert rates == sorted(rates, reverse=True)
    assert brief.rate(0) > lasting.rate(0)
    assert brief.rate(40) < lasting.rate(40)
    fall = [forecast.rate(20) / forecast.rate(0) for forecast in (brief, lasting)]
    assert fall[0] < fall[1] / 4
    # However long it was not used, one in use before is worth more than what is never used.
    for index in range(100):
        short.waits(("end", index), END)
    used, never = (short.record(group).forecast() for group in (PREAMBLE, END))
    assert used.rate(1000) > never.rate(0) * 64 / 1408


def test_own_uses_of_a_prefix_are_counted_and_bounded() -> None:
    estimator = ReuseEstimator(2)
    for key in "abc":
        for _ in range(2):
            estimator.waits(key, END)
            estimator.now += 5
            estimator.used(key)
    assert estimator.uses("a") is None
    own = estimator.uses("c")
    assert own is not None
    assert (own.count, own.total) == (2, 10)
    record = estimator.record(END)
    forecast = record.forecast()
    assert forecast.frequency(0, own) == (2 + record.chance) / (10 + record.lengths.mean)
    assert forecast.frequency(3, own) < forecast.frequency(0, own)
    often = PrefixUses(20, 40)
    assert forecast.shared_rate(10, often) > forecast.shared_rate(10, own) > forecast.shared_rate(100, own) > 0


def test_an_outlook_is_of_now_whatever_was_learned_since() -> None:
    estimator = ReuseEstimator(10)
    record, above = estimator.record(END), estimator.record(Group(Kind.PROMPT_END, Kind.TURN_END, 2))
    seen = set()
    for learn in (
        lambda: None,
        lambda: estimator.waits("a", END),
        lambda: estimator.waits("b", END),
        lambda: estimator.forget("b", Kind.PROMPT_END),
        lambda: estimator.used("a"),
    ):
        learn()
        assert [estimator.forecast(each) for each in (record, above)] == [record.forecast(), above.forecast()]
        seen.add(estimator.forecast(record))
    assert len(seen) == 4  # what was forgotten is as if it had never waited
