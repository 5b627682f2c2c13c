"""Decoding beside a process that keeps a core busy, and without it: now, and as libgomp and all cores would have it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from qwen36_neuron.openmp import openmp_environment

from .http import HttpServer
from .sides import Decode, RemoteSide, SideConfig, random_prompts

BATCHES = (1, 4)
PROMPT, TOKENS, FEW_TOKENS = 64, 256, 16
"""Tokens of a prompt; decoded by a run; decoded by one that takes 100 ms a token."""

SETTLE = 1.0
"""Seconds of decoding after the neighbour came or went, before anything is timed."""

NOW, BEFORE = "now", "before"

BEFORE_ENVIRONMENT = {"GOMP_SPINCOUNT": "300000"}
"""libgomp's own default."""


class Decoder(Protocol):
    """What is asked of a side."""

    def decode(self, prompts: list[list[int]], tokens: int) -> Decode:
        """Greedy decode of `tokens` tokens a prompt, all together."""
        ...


@contextmanager
def busy_neighbour(count: int = 1) -> Iterator[None]:
    """Processes of sessions of their own that each keep a core busy, ended when the block is left, however it is."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


def sides_of(config: SideConfig, http: bool) -> dict[str, Any]:
    """Our engine as it is, and with the waiting and the threads that it would have without any of this.

    Args:
        http: the whole server, asked over HTTP, and not the engine alone.
    """
    made: dict[str, Any] = {}
    try:
        for name, environment, share in ((NOW, openmp_environment({}), True), (BEFORE, BEFORE_ENVIRONMENT, False)):
            with _environment(environment):
                own = replace(config, share_cores=share)
                made[name] = HttpServer(own) if http else RemoteSide("engine", own)
    except BaseException:
        for side in made.values():
            side.close()
        raise
    return made


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """For processes that are started meanwhile."""
    kept = {name: os.environ.get(name) for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    for name in kept:
        os.environ.pop(name, None)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def measure(
    sides: dict[str, Any], rounds: int, console: Console, batches: Sequence[int] = BATCHES
) -> list[dict[str, Any]]:
    """Milliseconds of a decode step, of each side, alone and beside the neighbour, in turns; one row a batch size."""
    found = []
    for batch in batches:
        steps: dict[str, dict[str, list[float]]] = {name: {"idle": [], "busy": []} for name in sides}
        for turn in range(rounds):
            console.print(f"batch {batch}, round {turn + 1} of {rounds}")
            order = sorted(sides, reverse=turn % 2 == 1)
            for name in order:
                steps[name]["idle"].append(_step(sides[name], batch, TOKENS))
            with busy_neighbour():
                for name in order:
                    steps[name]["busy"].append(_step(sides[name], batch, TOKENS if name == NOW else FEW_TOKENS))
        found.append(_row(batch, steps))
    return found


def _row(batch: int, steps: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    def paired(above: list[float], below: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(above, below, strict=True))

    return {
        "batch": batch,
        "step_ms": {name: {k: statistics.median(v) for k, v in runs.items()} for name, runs in steps.items()},
        "busy_to_idle": {name: paired(runs["busy"], runs["idle"]) for name, runs in steps.items()},
        "idle_now_to_before": paired(steps[NOW]["idle"], steps[BEFORE]["idle"]),
        "samples_ms": steps,
    }


def _step(side: Decoder, batch: int, tokens: int) -> float:
    """Milliseconds of a step, once whatever has to get used to the neighbour has done so."""
    settled = time.perf_counter() + SETTLE
    while time.perf_counter() < settled:
        side.decode(random_prompts(time.time_ns(), batch, PROMPT), FEW_TOKENS)
    return side.decode(random_prompts(time.time_ns(), batch, PROMPT), tokens).step_ms


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Print the ratios."""
    table = Table(title="A decode step, alone and beside one busy core; medians")
    for title in ("batch", "alone", "beside", "ratio", "before: alone", "beside", "ratio", "alone, now to before"):
        table.add_column(title, justify="right")
    for row in rows:
        cells = [str(row["batch"])]
        for name in (NOW, BEFORE):
            idle, busy = row["step_ms"][name]["idle"], row["step_ms"][name]["busy"]
            cells += [f"{idle:.2f} ms", f"{busy:.2f} ms", f"{row['busy_to_idle'][name]:.2f}x"]
        table.add_row(*cells, f"{row['idle_now_to_before']:.3f}x")
    console.print(table)
    console.print("aims: beside one busy core of two at most 3x; alone at most 1.05x of before")
