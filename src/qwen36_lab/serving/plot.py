"""The picture of one serving benchmark result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAMES = {"engine": "ours", "transformers": "Hugging Face transformers", "http": "ours over HTTP"}


def plot(result: dict[str, Any], path: Path) -> None:
    """Write prefill and decode rates of all sides as a PNG.

    Args:
        result: what `qwen36 bench serving` writes as JSON.
        path: file to write.
    """
    summary, source = result["summary"], result["provenance"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5))
    _bars(left, summary["prefill"], [f"{row['tokens']:,}" for row in summary["prefill"]])
    left.set(title="Prefill", xlabel="prompt tokens", ylabel="tokens per second")
    _bars(right, summary["decode"], [str(row["batch"]) for row in summary["decode"]])
    right.set(title="Decode", xlabel="sequences at once", ylabel="tokens per second, all sequences")
    left.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.08), ncols=3, borderaxespad=0.0)
    machine = source["machine"]
    figure.text(
        0.01,
        0.01,
        f"{source['kind']} {source['date'][:10]}, commit {source['commit'][:10]}, {machine['processor']}, "
        f"{result['settings']['threads']} threads, fp32, {result['settings']['parameters'] / 1e6:.1f} M parameters; "
        "labels: times transformers",
        fontsize=7,
    )
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _bars(axis: Any, rows: list[dict[str, Any]], labels: list[str]) -> None:
    sides = list(rows[0]["tokens_per_second"])
    width = 0.8 / len(sides)
    for place, side in enumerate(sides):
        positions = [index + (place - (len(sides) - 1) / 2) * width for index in range(len(rows))]
        rates = [row["tokens_per_second"][side] for row in rows]
        axis.bar(positions, rates, width * 0.95, label=NAMES[side])
        if side != "transformers":
            for x, rate, row in zip(positions, rates, rows, strict=True):
                ratio = row["ratio"] if side == "engine" else rate / row["tokens_per_second"]["transformers"]
                axis.annotate(f"{ratio:.1f}x", (x, rate), ha="center", va="bottom")
    axis.set_xticks(range(len(rows)), labels)
    axis.spines[["top", "right"]].set_visible(False)
