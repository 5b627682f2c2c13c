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


def test_ratios_are_of_the_groups_medians_and_are_held_to_the_bar() -> None:
    """Whatever disturbs one group in one round does not count."""
    quiet = (answers(2.0), answers(1.0, steps=1))
    rounds = [
        [quiet, quiet],
        [(answers(9.0), answers(1.0)), quiet],
        [quiet, (answers(2.0), answers(7.0, steps=1))],
    ]
    row = summarize(LOAD, rounds)
    assert (row["ratio"], row["ratio_range"], row["met"]) == (2.0, [0.5, 5.5], True)
    assert (row["off"], row["on"], row["tokens"], row["steps"]) == (1.5, 3.0, 6, {"off": 6, "on": 2})
    assert not summarize(replace(LOAD, bar=2.5), rounds)["met"]
    assert summarize(replace(LOAD, bar=None), rounds)["met"] is None


def test_other_tokens_end_it() -> None:
    with pytest.raises(RuntimeError, match="copying: speculation changed a token"):
        summarize(LOAD, [[(answers(2.0), answers(1.0, tokens=(5, 6, 8)))]])


def test_a_first_token_may_be_so_much_later() -> None:
    load = replace(LOAD, first_token=True, bar=1.05)
    row = summarize(load, [[(answers(1.2), answers(1.248))]])
    assert row["met"]
    assert row["off"] == pytest.approx(400.0)
    assert not summarize(load, [[(answers(1.0), answers(1.06))]])["met"]


def test_groups_are_of_requests_that_run_together() -> None:
    load = replace(LOAD, prompts=((1,), (2,), (3,)), at_once=2)
    assert [group.prompts for group in load.groups()] == [((1,), (2,)), ((3,),)]


def test_workloads_are_those_of_the_bars() -> None:
    loads = {load.name: load for load in workloads(DEMO, quick=False)}
    assert [load.at_once for load in loads.values()] == [1, 8, 1, 8, 1, 1, 8, 1, 1, 1]
    assert len(loads["copying 500 tokens"].prompts[0]) >= PASSAGE
    prompts = loads["its own domain, batch 8"].prompts
    assert (len(prompts), len(set(prompts)) >= 28) == (32, True)
