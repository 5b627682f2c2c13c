"""Speculation on beside speculation off on the demo checkpoint, in one go, against its bars.

Every round asks both sides the same, a group of requests in turns, and both must give the same tokens.

    qwen36 bench speculation --out profile_artifacts/speculation
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from qwen36_lab.serving.http import HttpServer
from qwen36_lab.serving.sides import RemoteSide, SideConfig
from qwen36_lab.serving.speculation import (
    CONFIG,
    BothSides,
    Pair,
    Workload,
    first_tokens,
    side_configs,
    summarize,
    workloads,
)
from qwen36_neuron.checkpoint.locate import locate
from qwen36_neuron.provenance import provenance

from .serving import closing_all

MAX_MODEL_LEN, MAX_NUM_SEQS = 4608, 8
SIDES = ("off", "on")


def speculation(
    model: Annotated[str, typer.Option(help="Checkpoint folder or Hugging Face id.")] = "assets/demo-checkpoint",
    threads: Annotated[int, typer.Option(min=1, help="torch threads of either side.")] = len(os.sched_getaffinity(0)),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds measured; one more comes first.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="Short runs, to see that all of it works.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for speculation.json.")] = Path("profile_artifacts/speculation"),
) -> None:
    """Speculation on beside speculation off: print the ratios and their bars, write speculation.json."""
    folder = locate(model)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the sides are ended too
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    console = Console(width=max(110, Console().width))
    load = os.getloadavg()[0]
    if load > 0.5:
        console.print(f"Other work is running on this machine (load {load:.1f}); expect worse and noisier figures.")
    loads = workloads(folder, quick)
    # Each side would take the other's turns for somebody else's work, and begin its own on fewer threads.
    base = SideConfig(folder, threads, MAX_MODEL_LEN, MAX_NUM_SEQS, 2048, share_cores=False)
    answers: dict[str, list[list[Pair]]] = {each.name: [] for each in loads}
    for http in (False, True):
        asked = [each for each in loads if each.first_token is http]
        with closing_all({}) as sides:
            if http:
                for name, config in zip(SIDES, side_configs(base), strict=True):
                    sides[name] = HttpServer(config)
            else:
                sides["both"] = RemoteSide("engine", base, BothSides)
            for turn in range(rounds + 1):
                console.print(f"round {turn} of {rounds}{', over HTTP' if http else ''}" if turn else "warming up")
                for each in asked:
                    pairs = [_pair(sides, group, turn + at) for at, group in enumerate(each.groups())]
                    if turn:
                        answers[each.name].append(pairs)
    rows = [summarize(each, answers[each.name]) for each in loads]
    show(rows, console)
    settings = {
        "model": folder.name,
        "dtype": "float32",
        "threads": threads,
        "rounds": rounds,
        "speculative_config": CONFIG,
        "load_average_before": load,
    }
    out.mkdir(parents=True, exist_ok=True)
    result = {"provenance": provenance("measured").as_dict(), "settings": settings, "results": rows}
    (out / "speculation.json").write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"written: {out / 'speculation.json'}")


def _pair(sides: dict[str, Any], group: Workload, turn: int) -> Pair:
    """Both sides' answers, by turns one or the other first."""
    if "both" in sides:
        found: Pair = sides["both"].ask("pair", group, turn % 2 == 1)
        return found
    answers = {name: first_tokens(sides[name], group) for name in (SIDES if turn % 2 else SIDES[::-1])}
    return answers["off"], answers["on"]


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Print the results as a table."""
    table = Table(title="Speculation on beside off, the same tokens on both sides")
    for title in ("", "off", "on", "ratio", "least to most", "bar", "tokens a step"):
        table.add_column(title, justify="left" if not title else "right")
    for row in rows:
        unit = "ms" if row["unit"].startswith("ms") else "tok/s"
        low, high = row["ratio_range"]
        sign = "<=" if unit == "ms" else ">="
        steps = f"{row['tokens'] / row['steps']['on']:.2f}" if "steps" in row else ""
        table.add_row(
            row["workload"],
            f"{row['off']:,.1f} {unit}",
            f"{row['on']:,.1f} {unit}",
            f"{row['ratio']:.3f}x",
            f"{low:.3f} to {high:.3f}",
            "" if row["bar"] is None else f"{sign} {row['bar']}{'' if row['met'] else ', missed'}",
            steps,
        )
    console.print(table)
