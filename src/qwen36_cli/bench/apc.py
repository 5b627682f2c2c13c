"""What prefix caching reuses, and what that is worth.

With --trace, made-up request traces are replayed through this project's policy, in its simulator and in vLLM's own
scheduler with this project's slot manager, and through the alternatives: least recently used, every block, Marconi's
admission and eviction, and vLLM's `align` mode in vLLM's own managers. No model runs; sizes are those of the 27B.

    qwen36 bench apc --trace all --out profile_artifacts/apc

With --bound, the policy in its simulator is compared with what no policy can exceed. It takes scipy.

    qwen36 bench apc --bound all --out profile_artifacts/apc

With --trace-file, a recorded trace in Mooncake's format takes the place of made-up ones, for what one of N replicas
sees of it (--one-in N, which may be given again), with an ablation of what the policy learns.

    qwen36 bench apc --trace-file conversation_trace.jsonl --one-in 16 --one-in 8 --one-in 1 --slots 16

With --serve, the real engine runs a small checkpoint on this machine: time to the first token, cold against warm, and
throughput with nothing shared, prefix caching on against off.

    qwen36 bench apc --serve --out profile_artifacts/apc
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import qwen36_lab.apc
from qwen36_lab.apc.traces import TRACES
from qwen36_neuron.checkpoint.locate import locate
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.provenance import provenance

SIZES = Path(qwen36_lab.apc.__file__).with_name("qwen36_27b.json")
SLOTS = [8, 16, 64]


def apc(
    trace: Annotated[list[str] | None, typer.Option(help=f"A trace to replay: all, {', '.join(TRACES)}.")] = None,
    bound: Annotated[list[str] | None, typer.Option(help="A trace to bound: all, or a name.")] = None,
    trace_file: Annotated[Path | None, typer.Option(help="A recorded trace, in Mooncake's format.")] = None,
    one_in: Annotated[
        list[int] | None, typer.Option(min=1, help="Of --trace-file: the share of one of N replicas. [default: 1]")
    ] = None,
    slots: Annotated[list[int], typer.Option(help="Checkpoint slots; may be given again.")] = SLOTS,
    kv_ratio: Annotated[float, typer.Option(help="Bytes of KV for a byte of slots, on top of 32K tokens.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Of the traces.")] = 0,
    model: Annotated[Path, typer.Option(help="The config.json whose sizes count.")] = SIZES,
    serve: Annotated[bool, typer.Option("--serve", help="Measure the real engine.")] = False,
    checkpoint: Annotated[
        str | None, typer.Option(help="Folder or Hugging Face id of what --serve runs. [default: random weights]")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="torch threads of --serve.")] = len(os.sched_getaffinity(0)),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of --serve.")] = 5,
    keep: Annotated[bool, typer.Option("--keep", help="Add to the traces.json of the same commit and sizes.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("profile_artifacts/apc"),
) -> None:
    """What prefix caching reuses: traces replayed at equal memory (--trace), bounded (--bound); or what it is worth."""
    if not (trace or bound or serve or trace_file):
        raise typer.BadParameter("give --trace, --trace-file, --bound or --serve")
    if one_in and not trace_file:
        raise typer.BadParameter("--one-in says nothing without --trace-file")
    console = Console(width=200)
    out.mkdir(parents=True, exist_ok=True)
    if trace:
        replay(trace, slots, kv_ratio, seed, model, keep, out, console)
    if trace_file:
        recorded(trace_file, one_in or [1], slots, kv_ratio, model, out, console)
    if bound:
        limit(bound, slots, kv_ratio, seed, model, out, console)
    if serve:
        measure(locate(checkpoint) if checkpoint else None, threads, rounds, out, console)


def replay(
    trace: list[str], slots: list[int], kv_ratio: float, seed: int, model: Path, keep: bool, out: Path, console: Console
) -> None:
    """Write traces.json and traces.png."""
    from qwen36_lab.apc.plot import plot
    from qwen36_lab.apc.replay import run

    origin, path = provenance("modelled").as_dict(), out / "traces.json"
    cells = []
    if keep and path.is_file():
        stored = json.loads(path.read_text())
        if (stored["provenance"]["commit"], stored["seed"], stored["kv_ratio"]) != (origin["commit"], seed, kv_ratio):
            raise ConfigError("keep", path, "is of another commit, seed or kv-ratio", "Give another --out")
        cells = stored["cells"]
    result = {"provenance": origin, **run(named(trace), slots, kv_ratio, seed, model, console, cells)}
    (out / "traces.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(result, out / "traces.png")
    console.print(f"written: {out / 'traces.json'}, {out / 'traces.png'}")


def recorded(
    file: Path, shares: list[int], slots: list[int], kv_ratio: float, model: Path, out: Path, console: Console
) -> None:
    """Write recorded.json."""
    from qwen36_lab.apc.recorded import run

    result = run(file, shares, slots, kv_ratio, model, console)
    path = out / "recorded.json"
    path.write_text(json.dumps({"provenance": provenance("modelled").as_dict(), **result}, indent=1) + "\n")
    console.print(f"written: {path}")


def limit(
    trace: list[str], slots: list[int], kv_ratio: float, seed: int, model: Path, out: Path, console: Console
) -> None:
    """Write bound-SEED.json."""
    from qwen36_lab.apc.bound import run

    found = run(named(trace), slots, kv_ratio, seed, model, out / "traces.json", console)
    path = out / f"bound-{seed}.json"
    path.write_text(json.dumps({"provenance": provenance("modelled").as_dict(), **found}, indent=1) + "\n")
    console.print(f"written: {path}")


def named(traces: list[str]) -> list[str]:
    """The traces asked for."""
    names = list(TRACES) if "all" in traces else traces
    for name in names:
        if name not in TRACES:
            raise ConfigError("trace", name, "is not known", f"Known: all, {', '.join(TRACES)}")
    return names


def measure(checkpoint: Path | None, threads: int, rounds: int, out: Path, console: Console) -> None:
    """Write serve.json."""
    from qwen36_lab.apc.served import run
    from qwen36_neuron.checkpoint.maker import PRESETS, make_checkpoint

    with tempfile.TemporaryDirectory() as scratch:
        folder = checkpoint or make_checkpoint(Path(scratch) / "demo", PRESETS["demo"])
        result = {"provenance": provenance("measured").as_dict(), **run(folder, threads, rounds, console)}
    (out / "serve.json").write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"written: {out / 'serve.json'}")
