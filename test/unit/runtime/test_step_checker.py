"""Every rule of the step contract is refused by name, and a refused step changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen36_neuron.runtime import Capacity, Commit, Output, Row, Sampling, Step, StepChecker, StepError

CAPACITY = Capacity(num_blocks=9, num_lanes=3, num_slots=2, max_model_len=256, max_step_tokens=300, max_drafts=3)


def row(lane: int = 1, tokens: int = 4, start: int = 0, **changes: object) -> Row:
    fields: dict[str, object] = {"blocks": (1, 2, 3, 4)}
    return Row("r", lane, [0] * tokens, start, **(fields | changes))  # type: ignore[arg-type]


def checker() -> StepChecker:
    return StepChecker(CAPACITY, vocab_size=10)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((row(lane=0),), "lanes are 1..3"),
        ((row(lane=4),), "lanes are 1..3"),
        ((row(tokens=0),), "no tokens"),
        ((row(tokens=257, blocks=(1, 2, 3, 4, 5)),), "the maximum is 256"),
        ((row(tokens=160), row(lane=2, tokens=160, blocks=(5, 6, 7))), "300 tokens at most"),
        ((Row("r", 1, [10], 0, (1,)),), "token ids must be 0..9"),
        ((Row("r", 1, [-1], 0, (1,)),), "token ids must be 0..9"),
        ((row(tokens=65, blocks=(1,)),), "1 blocks cannot hold 65"),
        ((row(blocks=(0,)),), "block ids must be 1..8"),
        ((row(blocks=(9,)),), "block ids must be 1..8"),
        ((row(start=7),), "holds 0 tokens but the row starts at 7"),
        ((row(), row()), "in two rows"),
        ((row(start=64, restore=3),), "cannot restore 3"),
        ((row(start=65, restore=1),), "positive multiple of 64"),
        ((row(start=0, restore=1),), "positive multiple of 64"),
        ((row(tokens=64, commits=(Commit(63, 1),)),), "no checkpoint can be taken at 63"),
        ((row(tokens=64, commits=(Commit(128, 1),)),), "no checkpoint can be taken at 128"),
        ((row(tokens=128, commits=(Commit(128, 1), Commit(64, 2))),), "no checkpoint can be taken at 64"),
        ((row(tokens=64, commits=(Commit(64, 3),)),), "cannot write 3"),
        ((row(drafts=(1, 2, 3, 4)),), "4 drafts, and a row may have 3"),
        ((row(drafts=(10,)),), "token ids must be 0..9"),
        ((row(drafts=(-1,)),), "token ids must be 0..9"),
        ((row(drafts=(1,), output=Output.NOTHING),), "asks for nothing, which verifies no drafts"),
        ((row(drafts=(1,), output=Output.ALL_LOGITS),), "asks for all_logits, which verifies no drafts"),
        ((row(tokens=64, blocks=(1,), drafts=(1,)),), "1 blocks cannot hold 65"),
        ((row(tokens=256, drafts=(1,)),), "would hold 257 tokens"),
        ((row(tokens=150, drafts=(1,)), row(lane=2, tokens=149, blocks=(5, 6, 7), drafts=(1,))), "300 tokens at most"),
        ((row(tokens=128, commits=(Commit(64, 1), Commit(128, 1))),), "also written or read"),
        ((row(tokens=64, commits=(Commit(64, 1),)), row(lane=2, start=64, restore=1)), "also written or read"),
    ],
)
def test_refuses(rows: tuple[Row, ...], message: str) -> None:
    check = checker()
    with pytest.raises(StepError, match=message):
        check.check(Step(rows))
    assert check.held == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": float("nan")}, "temperature must be above 0"),
        ({"temperature": float("inf")}, "temperature must be above 0"),
        ({"uniform": 1.0}, r"uniform must be in \[0, 1\)"),
        ({"uniform": -0.1}, r"uniform must be in \[0, 1\)"),
        ({"top_k": -1}, "top_k must be 0 or more"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\]"),
        ({"min_p": 1.1}, r"min_p must be in \[0, 1\]"),
    ],
)
def test_refuses_sampling_parameters(changes: dict[str, float], message: str) -> None:
    sampling = Sampling(**({"temperature": 1.0, "uniform": 0.5} | changes))  # type: ignore[arg-type]
    check = StepChecker(replace(CAPACITY, sampling_candidates=8), vocab_size=10)
    with pytest.raises(StepError, match=message):
        check.check(Step((row(sampling=sampling),)))


def test_sampling_is_refused_where_it_cannot_be_done() -> None:
    sampling = Sampling(temperature=1.0, uniform=0.5)
    with pytest.raises(StepError, match="draws no tokens"):
        checker().check(Step((row(sampling=sampling),)))
    check = StepChecker(replace(CAPACITY, sampling_candidates=8), vocab_size=10)
    check.check(Step((row(sampling=sampling),)))
    with pytest.raises(StepError, match="asks for logits"):
        check.check(Step((row(sampling=sampling, output=Output.LOGITS),)))


def test_a_lane_continues_only_where_it_stopped() -> None:
    check = checker()
    first = Step((row(tokens=5),))
    check.check(first)
    check.apply(first)
    check.check(Step((row(tokens=1, start=5),)))
    with pytest.raises(StepError, match="holds 5 tokens but the row starts at 6"):
        check.check(Step((row(tokens=1, start=6),)))
    check.check(Step((row(tokens=9),)))  # a new sequence may take the lane


def test_a_released_lane_holds_nothing() -> None:
    check = checker()
    first = Step((row(tokens=5),))
    check.check(first)
    check.apply(first)
    with pytest.raises(StepError, match="holds 0 tokens"):
        check.check(Step((row(tokens=1, start=5),), released_lanes=(1,)))
    check.apply(Step((), released_lanes=(1,)))
    assert check.held == {}


def test_a_row_after_drafts_starts_where_some_of_them_were_right() -> None:
    check = checker()
    first = Step((row(tokens=62, drafts=(1, 2, 3)),))
    check.check(first)
    check.apply(first)
    for accepted in range(4):
        after = row(tokens=1, start=62 + accepted)
        check.check(Step((after,)))
        assert check.accepted(after) == accepted
    for start in (61, 66):
        with pytest.raises(StepError, match=f"holds 62 tokens and has run 3 drafts but the row starts at {start}"):
            check.check(Step((row(tokens=1, start=start),)))
    check.check(Step((row(tokens=1, start=65, commits=(Commit(64, 1),)),)))  # crossed by an accepted draft
    with pytest.raises(StepError, match=r"no checkpoint can be taken at 64 in 62\.\.63"):
        check.check(Step((row(tokens=1, start=62, commits=(Commit(64, 1),)),)))
    again = Step((row(tokens=1, start=64),))
    check.apply(again)
    with pytest.raises(StepError, match="holds 65 tokens but"):
        check.check(Step((row(tokens=1, start=66),)))


def test_a_number_is_needed_for_every_draft() -> None:
    check = StepChecker(replace(CAPACITY, sampling_candidates=4), vocab_size=10)
    check.check(Step((row(drafts=(1, 2), sampling=Sampling(1.0, 0.5, later=(0.1, 0.2))),)))
    for later, message in (((0.1,), "2 drafts need as many later numbers, not 1"), ((0.1, 1.0), "later must be")):
        with pytest.raises(StepError, match=message):
            check.check(Step((row(drafts=(1, 2), sampling=Sampling(1.0, 0.5, later=later)),)))
