"""Our engine and Hugging Face transformers on the same checkpoint, prompts and threads, in one go.

Both sides run in fp32, each in a process of its own. Every round asks each side the same question with the same fresh
prompt, one after the other, and measures the machine's fp32 matmul peak in between, so that a machine that slows down
slows all of them. Rates are medians over the rounds, a ratio is the median of the rounds' own ratios.

    qwen36 bench serving --out profile_artifacts/serving/

With --busy, our engine alone and beside a process that keeps a core busy, which this starts and stops; again as
it would be with libgomp's own waiting and a thread a core whatever happens.

    qwen36 bench serving --busy --out profile_artifacts/serving/
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from qwen36_lab.serving import busy
from qwen36_lab.serving.flops import FORMULA, matmul_peak, prefill_flops
from qwen36_lab.serving.http import HttpServer
from qwen36_lab.serving.plot import plot
from qwen36_lab.serving.sides import RemoteSide, SideConfig, random_prompts
from qwen36_neuron.checkpoint.locate import locate
from qwen36_neuron.checkpoint.maker import PRESETS, make_checkpoint
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.provenance import provenance

DECODE_PROMPT = 64
BATCHES = (1, 8)
OURS, THEIRS, HTTP = "engine", "transformers", "http"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        lengths: prompt tokens of the prefill runs.
        decode_tokens: tokens that every sequence decodes.
        rounds: how often everything is measured.
    """

    lengths: tuple[int, ...] = (512, 4096, 16384)
    decode_tokens: int = 64
    rounds: int = 5


QUICK = Plan(lengths=(128, 512), decode_tokens=8, rounds=2)


@dataclass(slots=True)
class Samples:
    """Everything measured, by side: seconds to the first token by length, decode runs by batch, memory in MiB."""

    first_token: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    decode: dict[str, dict[int, list[dict[str, Any]]]] = field(default_factory=dict)
    memory: dict[str, dict[str, float]] = field(default_factory=dict)
    matmul_peak: list[float] = field(default_factory=list)


def measure(plan: Plan, sides: dict[str, Any], console: Console) -> Samples:
    """Ask every side every question `plan.rounds` times, in turns; one round more comes first and is not counted."""
    samples = Samples(
        first_token={name: {length: [] for length in plan.lengths} for name in sides},
        decode={name: {batch: [] for batch in BATCHES} for name in sides},
    )
    for turn in range(plan.rounds + 1):
        counts = turn > 0
        console.print(f"round {turn} of {plan.rounds}" if counts else "warming up")
        peak = matmul_peak()
        if counts:
            samples.matmul_peak.append(peak)
        # The order changes each round, so that no side always runs on what the other left behind.
        order = list(sides.items()) if turn % 2 else list(reversed(sides.items()))
        for length in plan.lengths:
            (prompt,) = random_prompts(1000 * turn + length, 1, length)
            for name, side in order:
                seconds = side.first_token(prompt)
                if counts:
                    samples.first_token[name][length].append(seconds)
        for batch in BATCHES:
            prompts = random_prompts(1000 * turn + batch, batch, DECODE_PROMPT)
            for name, side in order:
                run = side.decode(prompts, plan.decode_tokens)
                if counts:
                    samples.decode[name][batch].append(asdict(run))
    for name, side in sides.items():
        if isinstance(side, RemoteSide):
            total, own = side.peak_memory_mib()
            samples.memory[name] = {"peak_mib": total, "peak_above_imports_mib": own}
    return samples


def summarize(samples: Samples, plan: Plan, config: ModelConfig) -> dict[str, Any]:
    """Medians, ratios and the fraction of the matmul peak."""
    peak = max(samples.matmul_peak)  # what the machine can do: a round that it was slow in says nothing of that
    prefill, decode = [], []
    for length in plan.lengths:
        seconds = {name: statistics.median(runs[length]) for name, runs in samples.first_token.items()}
        prefill.append(
            {
                "tokens": length,
                "first_token_ms": {name: 1000 * value for name, value in seconds.items()},
                "tokens_per_second": {name: length / value for name, value in seconds.items()},
                "ratio": _paired(samples.first_token[THEIRS][length], samples.first_token[OURS][length]),
                "fraction_of_matmul_peak": prefill_flops(config, length) / seconds[OURS] / peak,
            }
        )
    for batch in BATCHES:
        rates = {
            name: statistics.median(run["tokens_per_second"] for run in runs[batch])
            for name, runs in samples.decode.items()
        }
        own, other = (samples.decode[name][batch] for name in (OURS, THEIRS))
        decode.append(
            {
                "batch": batch,
                "tokens_per_second": rates,
                "ratio": _paired(
                    [run["tokens_per_second"] for run in own], [run["tokens_per_second"] for run in other]
                ),
                "step_ms": statistics.median(run["step_ms"] for run in own),
                "overhead_ms": statistics.median(run["overhead_ms"] for run in own),
            }
        )
    return {"prefill": prefill, "decode": decode, "memory": samples.memory, "matmul_peak_gflops": peak / 1e9}


def _paired(numerators: list[float], denominators: list[float]) -> float:
    """The median of the rounds' ratios: what disturbs a whole round cancels."""
    return statistics.median(n / d for n, d in zip(numerators, denominators, strict=True))


def show(summary: dict[str, Any], console: Console) -> None:
    """Print the summary as a table."""
    http = HTTP in summary["prefill"][0]["tokens_per_second"]
    table = Table(title="Our engine and Hugging Face transformers, fp32, medians")
    for title in ("", "ours", "transformers", "ratio", *(["ours over HTTP"] if http else []), "of ours"):
        table.add_column(title, justify="left" if title in ("", "of ours") else "right")

    def add(name: str, values: dict[str, float], ratio: float, note: str, unit: str) -> None:
        cells = [f"{values[side]:,.1f} {unit}" for side in (OURS, THEIRS)]
        over = [f"{values[HTTP]:,.1f} {unit}"] if http and HTTP in values else [""] * http
        table.add_row(name, *cells, f"{ratio:.2f}x", *over, note)

    for row in summary["prefill"]:
        note = f"{100 * row['fraction_of_matmul_peak']:.0f} % of the fp32 matmul peak"
        add(f"prefill, {row['tokens']:,} tokens", row["tokens_per_second"], row["ratio"], note, "tok/s")
    for row in summary["prefill"]:
        add(f"first token after {row['tokens']:,}", row["first_token_ms"], row["ratio"], "", "ms")
    for row in summary["decode"]:
        note = f"step {row['step_ms']:.2f} ms, engine overhead {row['overhead_ms']:.2f} ms"
        add(f"decode, batch {row['batch']}", row["tokens_per_second"], row["ratio"], note, "tok/s")
    for key, name in (("peak_mib", "peak memory"), ("peak_above_imports_mib", "peak memory above imports")):
        values = {side: memory[key] for side, memory in summary["memory"].items()}
        add(name, values, values[THEIRS] / values[OURS], "", "MiB")
    console.print(table)
    console.print(f"fp32 matmul peak of this machine, same run: {summary['matmul_peak_gflops']:.1f} GFLOP/s")
    console.print(FORMULA, highlight=False)


def serving(
    model: Annotated[
        str | None,
        typer.Option(help="Checkpoint folder or Hugging Face id. [default: random weights]"),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="torch threads of either side.")] = len(os.sched_getaffinity(0)),
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds measured. [default: 5, or 2 with --quick]")] = None,
    max_num_batched_tokens: Annotated[int, typer.Option(min=64, help="Tokens of one step of our engine.")] = 2048,
    http: Annotated[bool, typer.Option("--http", help="Measure our server over HTTP too.")] = False,
    beside: Annotated[bool, typer.Option("--busy", help="Our engine or server beside a busy process.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Short runs, to see that all of it works.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the JSON and the plot.")] = Path("profile_artifacts/serving"),
) -> None:
    """Our engine beside transformers on this machine: print the ratios, write serving.json and .png, or busy.json."""
    given = locate(model) if model else None
    plan = QUICK if quick else Plan()
    if rounds is not None:
        plan = replace(plan, rounds=rounds)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the sides are ended too
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    console = Console(width=max(120, Console().width))
    load = os.getloadavg()[0]
    if load > 0.5:
        console.print(f"Other work is running on this machine (load {load:.1f}); expect worse and noisier figures.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = given or make_checkpoint(Path(scratch) / "demo", PRESETS["demo"])
        shape = ModelConfig.from_pretrained(folder)
        config = SideConfig(folder, threads, max(plan.lengths) + 512, max(BATCHES), max_num_batched_tokens)
        settings = {
            "model": folder.name,
            "parameters": shape.num_parameters(),
            "dtype": "float32",
            "threads": threads,
            "max_num_batched_tokens": max_num_batched_tokens,
            "load_average_before": load,
        }
        result: dict[str, Any] = {"provenance": provenance("measured").as_dict(), "settings": settings}
        out.mkdir(parents=True, exist_ok=True)
        if beside:
            small = replace(config, max_model_len=1024, max_num_seqs=max(busy.BATCHES))
            with closing_all(busy.sides_of(small, http)) as sides:
                result["summary"] = busy.measure(sides, plan.rounds, console)
            settings |= {"rounds": plan.rounds, "side": "server over HTTP" if http else "engine"}
            busy.show(result["summary"], console)
            (out / "busy.json").write_text(json.dumps(result, indent=1) + "\n")
            console.print(f"written: {out / 'busy.json'}")
            return
        with closing_all({}) as sides:
            for name in (OURS, THEIRS):
                sides[name] = RemoteSide(name, config)
            if http:
                sides[HTTP] = HttpServer(config)
            samples = measure(plan, sides, console)
    settings |= {**asdict(plan), "decode_prompt_tokens": DECODE_PROMPT}
    result |= {"flops": FORMULA, "summary": summarize(samples, plan, shape), "samples": asdict(samples)}
    show(result["summary"], console)
    (out / "serving.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(result, out / "serving.png")
    console.print(f"written: {out / 'serving.json'}, {out / 'serving.png'}")


@contextmanager
def closing_all(sides: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The sides, and those that are added, are ended however the block is left."""
    try:
        yield sides
    finally:
        for side in sides.values():
            side.close()
