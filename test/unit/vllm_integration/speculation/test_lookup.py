"""Drafts out of a request's own tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from vllm_integration.speculation.lookup import LONGEST, Match, TokenHistory, look_up


def found(tokens: Sequence[int], least: int = 3, most: int = 4) -> Match | None:
    return look_up(np.array(tokens, np.int32), least, most)


def test_what_followed_is_proposed() -> None:
    assert found([1, 2, 3, 4, 5, 6, 7, 9, 2, 3, 4]) == Match(3, (5, 6, 7, 9))
    assert found([1, 2, 3, 4, 5, 6, 7, 9, 1, 2, 3, 4], most=2) == Match(4, (5, 6))


@pytest.mark.parametrize("tokens", [[], [1], [1, 2, 3], [1, 2, 3, 4, 2, 3], [1, 2, 3, 4, 9, 3, 4], [7, 8, 9, 8, 9]])
def test_fewer_tokens_than_asked_are_no_match(tokens: list[int]) -> None:
    assert found(tokens) is None


def test_the_longest_match_wins_and_the_latest_of_equals() -> None:
    assert found([5, 1, 2, 3, 10, 6, 1, 2, 3, 11, 7, 7, 5, 1, 2, 3], most=1) == Match(4, (10,))
    assert found([8, 1, 2, 3, 10, 9, 1, 2, 3, 11, 7, 7, 1, 2, 3], most=1) == Match(3, (11,))


@pytest.mark.parametrize("period", [1, 2, 3, 5])
def test_a_text_that_repeats_is_continued(period: int) -> None:
    text = [100 + i % period for i in range(40)]
    match = found(text, most=16)
    assert match is not None
    assert match.drafts == tuple(100 + (40 + i) % period for i in range(16))
    assert match.length == LONGEST


def test_against_the_definition() -> None:
    rng = random.Random(1)
    for _ in range(300):
        tokens = [rng.randrange(3) for _ in range(rng.randrange(1, 60))]
        least = rng.randrange(1, 5)
        best = 0
        for place in range(1, len(tokens)):
            same = 0
            while same < min(place, LONGEST) and tokens[place - 1 - same] == tokens[len(tokens) - 1 - same]:
                same += 1
            best = max(best, same)
        match = found(tokens, least, 6)
        if best < least:
            assert match is None
        else:
            assert match is not None
            # of many places the latest 32 alone are compared, in texts this short that is nearly all
            assert least <= match.length <= best
            assert len(match.drafts) == 6


def test_a_history_follows_a_request_and_grows() -> None:
    history, prompt, output = TokenHistory(), list(range(300)), []
    for token in range(700):
        assert history.follow(prompt, output).tolist() == prompt + output
        output.append(1000 + token)
    del output[5:]  # resumed with less
    assert history.follow(prompt, output).tolist() == prompt + output
