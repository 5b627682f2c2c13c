"""What prefix caching reuses, and what that is worth.

With --trace, made-up request traces are replayed through this project's policy, in its simulator and in vLLM's own
scheduler with this project's slot manager, and through the alternatives: least recently used, every block, Marconi's
admission and eviction, and vLLM's `align` mode in vLLM's own managers. No model runs; sizes are those of the 27B.

    python scripts/bench_apc.py --trace all --out profile_artifacts/apc
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qwen36_neuron.apc.traces import TRACES
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.provenance import provenance

SIZES = Path(__file__).with_name("qwen36_27b.json")
SLOTS = [8, 16, 64]


def main(
    trace: Annotated[list[str], typer.Option(help=f"A trace to replay: all, {', '.join(TRACES)}.")],
    slots: Annotated[list[int], typer.Option(help="Checkpoint slots; may be given again.")] = SLOTS,
    kv_ratio: Annotated[float, typer.Option(help="Bytes of KV for a byte of slots, on top of 32K tokens.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Of the traces.")] = 0,
    model: Annotated[Path, typer.Option(help="The config.json whose sizes count.")] = SIZES,
    out: Annotated[Path, typer.Option(help="Folder for traces.json and traces.png.")] = Path("profile_artifacts/apc"),
) -> None:
    """Replay traces and compare hit rates at equal memory."""
    from _apc_plot import plot
    from _apc_traces import run

    console = Console(width=200)
    names = list(TRACES) if "all" in trace else trace
    for name in names:
        if name not in TRACES:
            raise ConfigError("trace", name, "is not known", f"Known: all, {', '.join(TRACES)}")
    result = {"provenance": provenance("modelled").as_dict(), **run(names, slots, kv_ratio, seed, model, console)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "traces.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(result, out / "traces.png")
    console.print(f"written: {out / 'traces.json'}, {out / 'traces.png'}")


if __name__ == "__main__":
    typer.run(main)
