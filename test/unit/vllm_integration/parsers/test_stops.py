"""Stop strings: found where they are complete first, whatever the pieces."""

import itertools
from types import SimpleNamespace

import pytest

from vllm_integration.parsers import stops
from vllm_integration.parsers.stops import StopCutter, clear_server_stops, cutter_of, move_stops_to_scheduler


def cut(pieces, strings, included=False):
    cutter = StopCutter(strings, included)
    text = "".join([*map(cutter.feed, pieces), cutter.finish()])
    return text, cutter.hit


CASES = [
    ("one END two", ["END"], ("one ", "END")),
    ("no stop here EN", ["END"], ("no stop here EN", None)),
    ("EEND", ["END"], ("E", "END")),
    ("aab", ["aab", "ab"], ("", "aab")),  # Both are complete with the same character: the list's order decides.
    ("abc", ["abc", "b"], ("a", "b")),
    ("xab", ["zzz", "ab", "b"], ("x", "ab")),
    ("line\nline", ["\n"], ("line", "\n")),
    ("café ☕ done", ["☕"], ("café ", "☕")),
    ("ababac", ["abac"], ("ab", "abac")),
]


@pytest.mark.parametrize(("text", "strings", "expected"), CASES)
def test_pieces_cut_anywhere_give_the_whole(text, strings, expected):
    assert cut([text], strings) == expected
    assert cut(list(text), strings) == expected
    for first, second in itertools.combinations(range(len(text) + 1), 2):
        assert cut([text[:first], text[first:second], text[second:]], strings) == expected


def test_the_stop_is_shown_where_it_is_asked_for():
    assert cut(["one E", "ND two"], ["END"], included=True) == ("one END", "END")


def test_nothing_is_held_that_begins_no_stop():
    cutter = StopCutter(["END"])
    assert cutter.feed("one E") == "one "
    assert cutter.feed("xit") == "Exit"


def request(**fields):
    given = {"stop": [], "vllm_xargs": None, "include_stop_str_in_output": False, "skip_special_tokens": True}
    return SimpleNamespace(**{**given, **fields})


def test_stops_are_taken_from_vllm_and_given_to_the_scheduler():
    asked = request(stop="END", vllm_xargs={"checkpoints": [64]})
    move_stops_to_scheduler(asked)
    assert cutter_of(asked) is None  # vLLM still looks for it: no tool parser of ours took it over.
    clear_server_stops(asked)
    assert asked.stop == []
    assert asked.include_stop_str_in_output
    assert asked.vllm_xargs["checkpoints"] == [64]
    assert asked.vllm_xargs[stops.ANSWER_STOP] == ["END"]
    cutter = cutter_of(asked)
    assert (cutter.stops, cutter.included) == (("END",), False)


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": None},
        {"stop": []},
        {"stop": ["a", ""]},  # For vLLM to refuse.
        {"stop": ["a"], "min_tokens": 3},
        {"stop": ["a"], "stop_token_ids": [5]},
        {"stop": ["a"], "skip_special_tokens": False},
        {"stop": ["a"], "vllm_xargs": {"stop_in_reasoning": 1}},
    ],
)
def test_what_stays_with_vllm(fields):
    asked = request(**fields)
    move_stops_to_scheduler(asked)
    clear_server_stops(asked)
    assert asked.stop == fields["stop"]
    assert not asked.include_stop_str_in_output
    assert cutter_of(asked) is None
