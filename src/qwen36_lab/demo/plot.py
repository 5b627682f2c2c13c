"""The picture of the demo checkpoint's training: loss, share of answer tokens predicted, recall after each phase."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SMOOTH = 15
"""Log lines averaged."""


def plot(log: Path, path: Path) -> None:
    """Draw a training log (`log.jsonl` of train_demo.py)."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "step" in line]
    ends = [line for line in lines if "after_phase" in line]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.2))
    at = [line["step"] for line in steps]
    left.plot(at, _smooth([line["loss"] for line in steps]), label="model")
    left.plot(at, _smooth([line["draft_loss"][0] for line in steps]), label="first draft", alpha=0.7)
    left.set(title="Loss (weighted)", xlabel="step", yscale="log")
    middle.plot(at, _smooth([line["right"] for line in steps]), label="model")
    middle.plot(at, _smooth([line["draft_right"][0] for line in steps]), label="first draft", alpha=0.7)
    middle.set(title="Share of answer tokens predicted", xlabel="step", ylim=(0.5, 1.0))
    for panel in (left, middle):
        for before, after in pairwise(steps):
            if before["phase"] != after["phase"]:
                panel.axvline(before["step"], color="gray", linewidth=0.6)
        panel.legend(frameon=False)
    for length in (1024, 4096, 8192, 16384):
        shares = [end["exact"][f"table {length}"] for end in ends]
        right.plot([end["after_phase"] for end in ends], shares, marker="o", label=f"{length:,} tokens")
    right.set(title="Key-value tables, exact answers", xlabel="after phase", ylim=(0, 1.03))
    right.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _smooth(values: list[float]) -> list[float]:
    windows = [values[max(0, i - SMOOTH + 1) : i + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]
