"""A mixture of experts beside transformers, fp32, on this CPU, in one go: the feed-forward block, and a small model.

Both sides run the same tokens in turns; transformers' default form of the experts and its loop over them are both run,
and the faster one counts. Bars, of the model: a prompt of 4,096 tokens 2x, decode at batch 1 and 8 3x.

    python scripts/bench_moe.py --out profile_artifacts/moe
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from qwen36_lab.mixture.block import SIZES, Blocks
from qwen36_lab.mixture.model import SPEC, Models
from qwen36_lab.mixture.turns import THEIR_FORMS
from qwen36_neuron.checkpoint.maker import make_checkpoint
from qwen36_neuron.provenance import provenance

BLOCK_TOKENS = {1: 15, 8: 15, 40: 9, 512: 5, 4096: 3}
"""How many, and rounds of them: decode at batch 1 and 8, eight rows of four drafts, and prompts."""
PROMPTS = {512: 5, 4096: 3}
BATCHES = {1: 15, 8: 15}


def main(
    threads: Annotated[int, typer.Option(min=1, help="Threads of either side.")] = len(os.sched_getaffinity(0)),
    out: Annotated[Path, typer.Option(help="Folder for moe.json.")] = Path("profile_artifacts/moe"),
) -> None:
    """Print the ratios, and write moe.json."""
    origin, busy, results = provenance("measured").as_dict(), os.getloadavg()[0], []
    console = Console(width=max(110, Console().width))
    if busy > 0.5:
        console.print(f"Other work is running on this machine (load {busy:.1f}); expect worse and noisier figures.")
    table = Table("what", "ours ms", *(f"{form} ms" for form in THEIR_FORMS), "ratio", "least to most")

    def add(what: str, rounds: int, found: dict[str, Any]) -> None:
        results.append({"what": what, "rounds": rounds, **found})
        spread = f"{found['least_ratio']:.2f} to {found['most_ratio']:.2f}"
        milliseconds = (f"{found[f'{side}_ms']:.3g}" for side in ("ours", *THEIR_FORMS))
        table.add_row(what, *milliseconds, f"{found['ratio']:.2f}x", spread)

    with tempfile.TemporaryDirectory() as folder:
        models = Models(make_checkpoint(Path(folder) / "model", SPEC), threads, max(PROMPTS))
        for tokens, rounds in PROMPTS.items():
            add(f"model, prompt of {tokens}", rounds, models.compare_prompt(tokens, rounds))
        for batch, rounds in BATCHES.items():
            add(f"model, decode at batch {batch}", rounds, models.compare_steps(batch, rounds))
    for name, sizes in SIZES.items():
        blocks = Blocks(sizes, threads)
        for tokens, rounds in BLOCK_TOKENS.items():
            add(f"{name} block, {tokens} tokens", rounds, blocks.compare(tokens, rounds))
    console.print(table)
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "provenance": origin,
        "command": ["python", *sys.argv],
        "settings": {"dtype": "float32", "threads": threads, "load_average_before": busy},
        "results": results,
    }
    (out / "moe.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print(f"wrote {out / 'moe.json'}")


if __name__ == "__main__":
    typer.run(main)
