"""The benchmark of speculation: what its rows say, and that it refuses sides that do not agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qwen36_lab.serving.speculation import PASSAGE, Answers, Workload, summarize, workloads

LOAD = Workload("copying", ((1, 2),), {"temperature": 0.0}, 1, 1.5)
DEMO = Path(__file__).parents[4] / "assets" / "demo-checkpoint"


def answers(seconds: float, tokens: tuple[int, ...] = (5, 6, 7), steps: int = 3) -> Answers:
    return Answers(seconds, steps, [seconds / 3], [tokens])


def test_ratios_are_of_rounds_and_are_held_to_the_bar() -> None:
    rounds = [
        (answers(2.0), answers(1.0, steps=1)),
        (answers(3.0), answers(1.0, steps=1)),
        (answers(1.0), answers(1.0)),
    ]
    row = summarize(LOAD, rounds)
    assert (row["ratio"], row["ratio_range"], row["met"]) == (2.0, [1.0, 3.0], True)
    assert not summarize(replace(LOAD, bar=2.5), rounds)["met"]


def test_other_tokens_end_it() -> None:
    with pytest.raises(RuntimeError, match="copying: speculation changed a token"):
        summarize(LOAD, [(answers(2.0), answers(1.0, tokens=(5, 6, 8)))])


def test_a_first_token_may_be_so_much_later() -> None:
    load = replace(LOAD, first_token=True, bar=1.05)
    assert summarize(load, [(answers(1.0), answers(1.04))])["met"]
    assert not summarize(load, [(answers(1.0), answers(1.06))])["met"]


def test_workloads_are_those_of_the_bars() -> None:
    loads = {load.name: load for load in workloads(DEMO, quick=False)}
    assert [load.at_once for load in loads.values()] == [1, 8, 1, 8, 1, 1, 1, 1]
    assert len(loads["copying 500 tokens"].prompts[0]) >= PASSAGE
    prompts = loads["its own domain, batch 8"].prompts
    assert (len(prompts), len(set(prompts)) >= 28) == (32, True)
