"""The benchmark beside a busy process: what it starts it stops, and its ratios are of one round."""

from __future__ import annotations

import io
import os
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from qwen36_lab.serving import busy
from qwen36_lab.serving.sides import Decode
from qwen36_neuron.openmp import SPINS


def neighbours() -> list[psutil.Process]:
    """Of this process's children, which other tests have too, those that keep a core busy."""
    children = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in children if "while True: pass" in child.cmdline()]


class Side:
    """Takes `alone` ms a step, and `beside` where the neighbour runs."""

    def __init__(self, alone: float, beside: float) -> None:
        self.alone, self.beside, self.runs = alone, beside, []

    def decode(self, prompts: list[list[int]], tokens: int) -> Decode:
        running = len(neighbours())
        assert running <= 1
        self.runs.append((len(prompts), tokens, running))
        return Decode(tokens_per_second=1.0, step_ms=self.beside if running else self.alone)


def test_ratios_and_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "SETTLE", 0.0)
    sides = {busy.NOW: Side(2.0, 3.0), busy.BEFORE: Side(1.0, 50.0)}
    text = io.StringIO()
    rows = busy.measure(sides, 2, Console(file=text, width=200))
    assert [row["batch"] for row in rows] == list(busy.BATCHES)
    for row in rows:
        assert row["busy_to_idle"] == {busy.NOW: 1.5, busy.BEFORE: 50.0}
        assert row["idle_now_to_before"] == 2.0
    assert sides[busy.NOW].runs[:2] == [(1, busy.TOKENS, 0), (1, busy.TOKENS, 1)]
    assert neighbours() == []
    busy.show(rows, Console(file=text, width=200))
    assert "1.50x" in text.getvalue()
    assert "50.00x" in text.getvalue()


def test_no_neighbour_outlives_an_error() -> None:
    def failing() -> None:
        with busy.busy_neighbour(2):
            assert len(neighbours()) == 2
            raise RuntimeError("a side ended")

    with pytest.raises(RuntimeError, match="a side ended"):
        failing()
    assert neighbours() == []


def test_each_side_is_started_with_its_own_way_of_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(
        busy, "RemoteSide", lambda _, config: started.append((config, os.environ.get("GOMP_SPINCOUNT")))
    )
    monkeypatch.setenv("GOMP_SPINCOUNT", "9")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    busy.sides_of(busy.SideConfig(Path(), 2, 1024, 4, 2048), http=False)
    assert [(config.share_cores, spins) for config, spins in started] == [(True, str(SPINS)), (False, "300000")]
    assert (os.environ["GOMP_SPINCOUNT"], os.environ["OMP_WAIT_POLICY"]) == ("9", "passive")
