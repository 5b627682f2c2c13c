"""Rows of sampled requests: the changes told are those that turn one step's rows into the next one's."""

from __future__ import annotations

import random

from vllm import SamplingParams

from vllm_integration.batch import SampledRows
from vllm_integration.requests import RequestState


def test_changes_lead_from_one_step_to_the_next():
    """A follower that applies removals, additions and moves, in vLLM's order, holds the same rows at every step."""
    rng = random.Random(5)
    rows, followed, announced = SampledRows(), {}, 0
    alive: list[RequestState] = []
    for step in range(400):
        before = {id(state) for state in alive}
        alive = [state for state in alive if rng.random() > 0.3]
        alive += [RequestState(f"{step}.{i}", SamplingParams(), [1]) for i in range(rng.randrange(4))]
        rng.shuffle(alive)
        update = rows.update(alive)
        assert {id(state) for state in rows.states} == {id(state) for state in alive}
        if update is None:
            assert {id(state) for state in alive} == before
            continue
        assert update.batch_size == len(alive)
        announced += len(update.added)
        for row in update.removed:
            del followed[row]
        for row, params, prompt, output in update.added:
            followed[row] = next(s for s in alive if s.params is params and s.prompt is prompt and s.output is output)
        for source, target, _ in update.moved:
            followed[target] = followed.pop(source)
        assert [followed[row] for row in range(len(alive))] == rows.states
        assert len(followed) == len(alive)
    assert announced > 400


def test_nothing_is_told_while_the_requests_stay():
    states = [RequestState(name, SamplingParams(), [1]) for name in "abc"]
    rows = SampledRows()
    assert rows.update(states) is not None
    assert rows.update(states[::-1]) is None
    assert rows.states == states
