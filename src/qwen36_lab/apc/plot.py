"""The picture of the trace results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHOWN = {
    "ours, in the engine": ("ours", "#d9480f"),
    "align": ("vLLM align", "#1971c2"),
    "align, match unit 16": ("vLLM align, prefix-match-unit 16", "#74c0fc"),
    "Marconi-like": ("Marconi-like, best alpha", "#2f9e44"),
    "least recently used": ("our boundaries, least recently used", "#adb5bd"),
}


def plot(result: dict[str, Any], path: Path) -> None:
    """Write hit rates by trace, one panel for each number of slots, as a PNG.

    Args:
        result: what `qwen36 bench apc` writes as JSON.
        path: file to write.
    """
    slots = sorted({cell["slots"] for cell in result["cells"]})
    figure, axes = plt.subplots(len(slots), 1, figsize=(11, 3.1 * len(slots)), sharex=True, squeeze=False)
    for axis, count in zip(axes[:, 0], slots, strict=True):
        _panel(axis, [cell for cell in result["cells"] if cell["slots"] == count])
    axes[0, 0].legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.12), fontsize=9)
    source = result["provenance"]
    figure.text(
        0.01,
        0.005,
        f"{source['kind']}: replay of seeded traces, no model run; sizes of Qwen3.6-27B; {source['date'][:10]}, "
        f"commit {source['commit'][:10]}, vLLM {source['packages'].get('vllm', '?')}",
        fontsize=7,
    )
    figure.tight_layout(rect=(0, 0.015, 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _panel(axis: Any, cells: list[dict[str, Any]]) -> None:
    width = 0.8 / len(SHOWN)
    for place, (name, (label, colour)) in enumerate(SHOWN.items()):
        positions = [index + (place - (len(SHOWN) - 1) / 2) * width for index in range(len(cells))]
        axis.bar(positions, [c["results"][name]["hit_rate"] for c in cells], width * 0.95, label=label, color=colour)
    for index, cell in enumerate(cells):
        figures = cell["results"]["ours"]
        limit = figures["reusable"] / figures["prompt"]
        axis.hlines(limit, index - 0.45, index + 0.45, colors="black", linewidth=1)
    gigabytes = cells[0]["memory"]["total_bytes"] / 1e9
    axis.set_title(f"{cells[0]['slots']} slots, {gigabytes:.1f} GB of KV and states for everyone", fontsize=10)
    axis.set(ylabel="prompt tokens reused", ylim=(0, 1))
    axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axis.set_xticks(range(len(cells)), [cell["trace"] for cell in cells])
    axis.spines[["top", "right"]].set_visible(False)
