"""A mixture's feed-forward block beside transformers' `Qwen3_5MoeSparseMoeBlock`, fp32, on this CPU, in one go.

Both sides run the same tokens in turns; transformers' default form and its loop over experts are both run, and the
faster one counts.

    python scripts/bench_moe.py --out profile_artifacts/moe
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from qwen36_lab.mixture import SIZES, THEIR_FORMS, Blocks
from qwen36_neuron.provenance import provenance

TOKENS = {1: 31, 8: 31, 40: 15, 512: 5, 4096: 3}
"""How many, and rounds of them: decode at batch 1 and 8, eight rows of four drafts, and prompts."""


def main(
    threads: Annotated[int, typer.Option(min=1, help="Threads of either side.")] = len(os.sched_getaffinity(0)),
    out: Annotated[Path, typer.Option(help="Folder for block.json.")] = Path("profile_artifacts/moe"),
) -> None:
    """Print the ratios of both sizes, and write block.json."""
    origin, busy, results = provenance("measured").as_dict(), os.getloadavg()[0], []
    console = Console(width=max(110, Console().width))
    if busy > 0.5:
        console.print(f"Other work is running on this machine (load {busy:.1f}); expect worse and noisier figures.")
    table = Table("sizes", "tokens", "ours ms", *(f"{form} ms" for form in THEIR_FORMS), "ratio", "least to most")
    for name, sizes in SIZES.items():
        blocks = Blocks(sizes, threads)
        for tokens, rounds in TOKENS.items():
            found = blocks.compare(tokens, rounds)
            results.append({"sizes": name, "rounds": rounds, **found})
            spread = f"{found['least_ratio']:.2f} to {found['most_ratio']:.2f}"
            milliseconds = (f"{found[f'{side}_ms']:.3g}" for side in ("ours", *THEIR_FORMS))
            table.add_row(name, str(tokens), *milliseconds, f"{found['ratio']:.2f}x", spread)
    console.print(table)
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "provenance": origin,
        "command": ["python", *sys.argv],
        "settings": {"dtype": "float32", "threads": threads, "load_average_before": busy},
        "results": results,
    }
    (out / "block.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print(f"wrote {out / 'block.json'}")


if __name__ == "__main__":
    typer.run(main)
