"""Our sampling on the host and vLLM's sampler on the same logits of the real vocabulary, in one go.

Every step both sides sample the same logits for requests of the same parameters, in turns. The first line is the bar:
with the published parameters of the mode without thinking, at most 0.35 of vLLM's time.

    qwen36 bench sampling --out profile_artifacts/sampling
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from qwen36_neuron.provenance import provenance

BATCHES = (8, 1)
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
"""What vLLM is to find in its environment when it is imported."""


def sampling(
    vocab: Annotated[int, typer.Option(min=2, help="Tokens of the vocabulary.")] = 248320,
    rounds: Annotated[int | None, typer.Option(min=1, help="Steps measured of every mix.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="torch threads of either side.")] = len(os.sched_getaffinity(0)),
    out: Annotated[Path, typer.Option(help="Folder for sampling.json.")] = Path("profile_artifacts/sampling"),
) -> None:
    """Our sampling on the host beside vLLM's sampler, on the same logits: print the ratios, write sampling.json."""
    os.environ.update(QUIET)
    from qwen36_lab.serving.sampling import MIXES, Workload, compare  # brings vLLM

    torch.set_num_threads(threads)
    load, busy = Workload(vocab=vocab), os.getloadavg()[0]
    if rounds is not None:
        load = replace(load, rounds=rounds)
    console = Console(width=max(100, Console().width))
    if busy > 0.5:
        console.print(f"Other work is running on this machine (load {busy:.1f}); expect worse and noisier figures.")
    table = Table(title=f"One step of sampling, {vocab:,} logits a row, medians of {load.rounds} rounds")
    for title in ("", "rows", "ours", "vLLM's sampler", "ratio", "least to most"):
        table.add_column(title, justify="left" if not title else "right")
    results = []
    for batch in BATCHES:
        for name, asked in MIXES.items():
            found = compare(load, asked, batch)
            results.append({"mix": name, "parameters": asked, "rows": batch, **found})
            low, high = found["ratio_range"]
            cells = f"{found['ours_ms']:.2f} ms", f"{found['vllm_ms']:.1f} ms", f"{found['ratio']:.3f}x"
            table.add_row(name, str(batch), *cells, f"{low:.3f} to {high:.3f}")
    console.print(table)
    settings = {**asdict(load), "threads": threads, "load_average_before": busy}
    result = {"provenance": provenance("measured").as_dict(), "settings": settings, "results": results}
    out.mkdir(parents=True, exist_ok=True)
    (out / "sampling.json").write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"written: {out / 'sampling.json'}")
