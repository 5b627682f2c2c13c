"""Attention over FP8 keys and values beside fp32 ones, on this CPU, in turns: one decode step of a layer, and a prompt.

    python scripts/bench_fp8_kv.py --out profile_artifacts/formats

Numbers are random: how long a step takes depends on how many there are.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.ops.attention.numba import attention_prefill
from qwen36_neuron.ops.attention.numba_pages import Pages
from qwen36_neuron.ops.attention.numba_step import attention_step
from qwen36_neuron.ops.fp8 import LARGEST, STORAGE
from qwen36_neuron.ops.numba.scalar import f32
from qwen36_neuron.provenance import provenance

SIZE, ROTATED, NEW = 256, 64, 128
"""Of a head, of its rotated part, and new tokens of the prompt."""
SCALE = 1 / 32


def pages(held: int, rows: int, heads: int) -> dict[str, Pages]:
    """The same random keys and values in both number formats."""
    halves = [torch.randn((rows * held // BLOCK_SIZE + 1) * BLOCK_SIZE, heads, SIZE) for _ in "kv"]
    codes = [(half / SCALE).clamp_(-LARGEST, LARGEST).to(STORAGE) for half in halves]
    scales = torch.full((heads,), SCALE)
    return {"fp32": Pages.of(halves[0], halves[1]), "fp8": Pages.of(codes[0], codes[1], scales, scales)}


def in_turns(run: Callable[[Pages], None], forms: dict[str, Pages], rounds: int) -> dict[str, float]:
    """Median milliseconds of each form, and the median of each round's ratio."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(rounds + 1):  # the first compiles
        for name, form in forms.items():
            start = time.perf_counter()
            run(form)
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    found = {f"{name}_ms": statistics.median(each) for name, each in times.items()}
    ratios = [b / a for a, b in zip(times["fp32"], times["fp8"], strict=True)]
    return found | {"fp8_of_fp32": statistics.median(ratios)}


def layer(held: int, rows: int, kv_heads: int, group: int, rounds: int) -> dict[str, dict[str, float]]:
    """Times of a decode step of sequences of `held` tokens, and of the last NEW of such a prompt."""
    heads, forms, draw = kv_heads * group, pages(held, rows, kv_heads), np.random.default_rng(0)
    weight, eps, half = np.ones(SIZE, np.float32), f32(1e-6), ROTATED // 2
    tables = np.arange(1, 1 + rows * held // BLOCK_SIZE, dtype=np.int32).reshape(rows, -1)

    x = draw.standard_normal((rows, 2 * (heads + kv_heads) * SIZE), np.float32)
    angles = np.ones((rows, half), np.float32), np.zeros((rows, half), np.float32)
    found, ends = np.empty((rows, heads * SIZE), np.float32), np.full(rows, held)

    def step(form: Pages) -> None:
        attention_step(x, weight, weight, eps, *angles, form, tables, ends, found)

    qg = draw.standard_normal((1, NEW, 2 * heads * SIZE), np.float32)
    turned = np.ones((1, NEW, half), np.float32), np.zeros((1, NEW, half), np.float32)
    read, sizes = np.empty((1, NEW, heads * SIZE), np.float32), (np.array([held]), np.array([NEW]))

    def prompt(form: Pages) -> None:
        attention_prefill(qg, weight, eps, *turned, tables[:1], *sizes, form, read)

    return {
        f"decode, {rows} rows over {held}": in_turns(step, forms, rounds),
        f"prompt, {NEW} tokens, {held} in all": in_turns(prompt, forms, rounds),
    }


def main(
    rows: Annotated[int, typer.Option(help="Sequences of a decode step.")] = 4,
    kv_heads: Annotated[int, typer.Option(help="Heads of keys and values.")] = 2,
    group: Annotated[int, typer.Option(help="Query heads that share one.")] = 3,
    rounds: Annotated[int, typer.Option(min=3, help="Turns of each.")] = 21,
    out: Annotated[Path, typer.Option(help="Folder for fp8_kv_time.json.")] = Path("profile_artifacts/formats"),
) -> None:
    """Print times of both number formats, and write fp8_kv_time.json."""
    results: dict[str, dict[str, float]] = {}
    for held in (1024, 8192):
        results |= layer(held, rows, kv_heads, group, rounds)
    table = Table("one layer's attention", "fp32 ms", "fp8 ms", "of fp32's")
    for name, times in results.items():
        table.add_row(name, *(f"{number:.3g}" for number in times.values()))
    Console().print(table)
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "provenance": provenance("measured").as_dict(),
        "what": "measured on CPU",
        "command": ["python", *sys.argv],
        "threads": torch.get_num_threads(),
        "layer": results,
    }
    (out / "fp8_kv_time.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
