"""Which boundaries the planner keeps, against rules worked out by hand, and against what must always hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen36_neuron.apc import BoundaryPlanner, Kind, PolicyConfig
from qwen36_neuron.errors import ConfigError

START, END, TEXT = 1, 2, 7


def prompt(*messages: int) -> list[int]:
    """Messages of the given total lengths, each opened by START and closed by END."""
    return [token for length in messages for token in (START, *[TEXT] * (length - 2), END)]


def kept(planner: BoundaryPlanner, *kinds: Kind, tokens: list[int], restored: int = 0) -> list[int]:
    plan = planner.plan(tokens, restored)
    return [boundary for boundary, kind in plan.prompt.items() if kind in kinds]


@pytest.mark.parametrize(
    ("length", "ends"),
    [
        (1, []),
        (63, []),
        (64, [64]),
        (65, [64]),
        (127, [64]),
        (128, [64, 128]),
        (129, [128]),
        (6399, [6336]),
        (6400, [6336, 6400]),
        (6401, [6400]),
    ],
)
def test_end_of_prompt(planner: BoundaryPlanner, length: int, ends: list[int]) -> None:
    # An exact repeat must run its last token again: where the prompt fills its last block only the one before serves.
    assert kept(planner, Kind.PROMPT_END, tokens=[TEXT] * length) == ends


@pytest.mark.parametrize(("first", "boundary"), [(640, 640), (641, 640), (639, 576), (703, 640), (704, 704)])
def test_first_message_ends_the_preamble(planner: BoundaryPlanner, first: int, boundary: int) -> None:
    assert kept(planner, Kind.PREAMBLE, tokens=prompt(first, 500)) == [boundary]


def test_a_message_that_ends_with_its_block_is_kept_whole(planner: BoundaryPlanner) -> None:
    # The next START is at 640; the newline that templates put before it may push it past the end of a block.
    tokens = [START, *[TEXT] * 638, END, 9, START, *[TEXT] * 300]
    assert 640 in planner.plan(tokens).prompt


def test_last_messages_come_before_spaced_ones_and_those_before_the_rest() -> None:
    planner = BoundaryPlanner(PolicyConfig(16, frozenset({START}), frozenset({END})))
    plan = planner.plan(prompt(1000, 1000, 1000, 1000, 1000))
    assert dict(plan.prompt) == {
        960: Kind.PREAMBLE,
        2944: Kind.MESSAGE,
        3968: Kind.MESSAGE,
        4992: Kind.PROMPT_END,
    }


def test_unmarked_text_is_spaced_by_half_and_more(planner: BoundaryPlanner) -> None:
    assert kept(planner, Kind.SPACED, tokens=[TEXT] * 1000) == [64, 128, 192, 256, 384, 576, 832]


def test_marks_and_a_restored_prefix_make_spaced_ones_needless(planner: BoundaryPlanner) -> None:
    assert kept(planner, Kind.SPACED, tokens=[TEXT] * 1400, restored=960) == []
    assert kept(planner, Kind.SPACED, tokens=prompt(128, 64, 64, 64)) == [64]


def test_spaced_ones_go_to_ends_of_messages_where_those_do(planner: BoundaryPlanner) -> None:
    plan = planner.plan(prompt(1000, 300, 400, 5000, 500), restored=960)
    assert dict(plan.prompt) == {
        1280: Kind.MESSAGE,
        1664: Kind.MESSAGE,
        2496: Kind.SPACED,
        3712: Kind.SPACED,
        5568: Kind.SPACED,
        6656: Kind.MESSAGE,
        7168: Kind.PROMPT_END,
    }


def test_branch_and_named_boundaries_win(planner: BoundaryPlanner) -> None:
    plan = planner.plan([TEXT] * 1000, branch=512, named=[700, 512, 20, 5000, -3])
    assert plan.prompt[512] is Kind.NAMED
    assert plan.prompt[640] is Kind.NAMED
    assert planner.plan([TEXT] * 1000, branch=512).prompt[512] is Kind.BRANCH
    assert max(plan.prompt) == 960
    assert min(plan.prompt) == 64


def test_with_few_slots_what_was_asked_for_stays() -> None:
    planner = BoundaryPlanner(PolicyConfig(8, frozenset({START}), frozenset({END})))
    plan = planner.plan(prompt(1000, 1000, 1000), branch=640, named=[320])
    assert dict(plan.prompt) == {320: Kind.NAMED, 640: Kind.BRANCH}


def test_decoding_keeps_every_boundary_it_crosses(planner: BoundaryPlanner) -> None:
    plan = planner.plan([TEXT] * 128)
    assert plan.kind(128) is Kind.PROMPT_END
    assert plan.kind(192) is Kind.TURN_END
    assert planner.plan([TEXT] * 100).kind(128) is Kind.TURN_END


def test_quarters_of_the_new_part(planner: BoundaryPlanner) -> None:
    plan = planner.plan([TEXT] * 1024, restored=512)
    assert [plan.quarter(boundary) for boundary in (576, 640, 704, 896, 960, 1024, 1088)] == [1, 1, 2, 3, 4, 4, 4]


@pytest.mark.parametrize(
    ("slots", "cap", "expected"),
    [(0, 16, 0), (1, 16, 1), (3, 16, 2), (8, 16, 2), (16, 16, 4), (64, 16, 16), (64, 3, 3), (256, 16, 16)],
)
def test_cap(slots: int, cap: int, expected: int) -> None:
    assert PolicyConfig(slots, slots_per_prompt=cap).prompt_cap == expected


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("num_slots", {"num_slots": -1}),
        ("slots_per_prompt", {"num_slots": 4, "slots_per_prompt": 0}),
        ("message_ends", {"num_slots": 4, "message_starts": frozenset({5}), "message_ends": frozenset({5, 6})}),
    ],
)
def test_bad_settings_are_named(field: str, arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigError) as caught:
        PolicyConfig(**arguments)  # type: ignore[arg-type]
    assert caught.value.field == field


@given(
    tokens=st.lists(st.sampled_from([START, END, TEXT, TEXT, TEXT, TEXT]), min_size=1, max_size=1500),
    slots=st.integers(0, 80),
    restored=st.integers(0, 30),
    branch=st.integers(0, 2000),
    named=st.lists(st.integers(-100, 3000), max_size=5),
)
def test_what_always_holds(tokens: list[int], slots: int, restored: int, branch: int, named: list[int]) -> None:
    planner = BoundaryPlanner(PolicyConfig(slots, frozenset({START}), frozenset({END})))
    restored = min(restored * 64, (len(tokens) - 1) // 64 * 64)
    plan = planner.plan(tokens, restored, branch, named)
    assert len(plan.prompt) <= planner.config.prompt_cap
    assert all(b % 64 == 0 and restored < b <= len(tokens) for b in plan.prompt)
    assert list(plan.prompt) == sorted(plan.prompt)
    assert plan == planner.plan(list(tokens), restored, branch, list(named))


@given(length=st.integers(1, 9000), restored=st.integers(0, 20))
def test_any_unmarked_branch_finds_half_of_what_it_shares(length: int, restored: int) -> None:
    planner = BoundaryPlanner(PolicyConfig(1024, slots_per_prompt=256))
    restored = min(restored * 64, (length - 1) // 64 * 64)
    boundaries = [restored, *planner.plan([TEXT] * length, restored).prompt]
    for shared in range(max(restored, 64), length + 1):
        assert max(b for b in boundaries if b <= shared) * 2 >= shared - 63


def test_openings_come_before_spaced_ones(planner: BoundaryPlanner) -> None:
    plan = planner.plan([TEXT] * 3000, openings=(1000, 2000))
    assert [boundary for boundary, kind in plan.prompt.items() if kind is Kind.OPENING] == [960, 1984]
    assert planner.plan([TEXT] * 3000, restored=960, openings=(1000, 2000)).prompt.get(960) is None
    few = BoundaryPlanner(PolicyConfig(12)).plan([TEXT] * 3000, openings=(1000, 2000))
    assert few.prompt == {960: Kind.OPENING, 1984: Kind.OPENING, 2944: Kind.PROMPT_END}
