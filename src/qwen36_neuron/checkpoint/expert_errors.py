"""What a conversion did to each expert of a mixture: a rarely used one's loss shows in no average over texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .names import canonical_name

EXPERTS = "experts.json"
WORST = 10
"""Experts that are named."""

_EXPERT = re.compile(r"layers\.(\d+)\.mlp\.(?:experts\.(\d+)|shared_expert)\.(gate|up|down)_proj\.weight")
SHARED = "shared"


def expert_errors(tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The errors of experts' matrices, by layer and expert; None if none was converted.

    Args:
        tensors: of the manifest: what became of each converted tensor, see `fp8.Error`.
    Returns:
        `experts`: an entry an expert, with `relative` (root mean square of the difference, in parts of the values')
        and `largest` (largest difference, in parts of the largest magnitude in its row) of each matrix, and of the
        expert those of its worst; `worst`: the experts with the largest relative errors, in that order; `mean` and
        `median` of all experts' relative errors.
    """
    found: dict[tuple[int, str], dict[str, dict[str, float]]] = {}
    for name, error in tensors.items():
        at = _EXPERT.fullmatch(canonical_name(name) or "")
        if at is not None:
            loss = error["sqnr_db"]
            relative = 0.0 if loss is None else 10 ** (-loss / 20)
            matrix = {"relative": relative, "largest": error["max_of_channel"]}
            found.setdefault((int(at[1]), at[2] or SHARED), {})[at[3]] = matrix
    if not found:
        return None
    experts = [
        {
            "layer": layer,
            "expert": SHARED if expert == SHARED else int(expert),
            "relative": max(matrix["relative"] for matrix in matrices.values()),
            "largest": max(matrix["largest"] for matrix in matrices.values()),
            "matrices": matrices,
        }
        for (layer, expert), matrices in found.items()
    ]
    experts.sort(key=lambda one: (one["layer"], str(one["expert"]).zfill(8)))
    ranked = sorted(experts, key=lambda one: -float(str(one["relative"])))
    errors = [float(str(one["relative"])) for one in ranked]
    return {
        "mean": sum(errors) / len(errors),
        "median": errors[len(errors) // 2],
        "worst": [{key: one[key] for key in ("layer", "expert", "relative", "largest")} for one in ranked[:WORST]],
        "experts": experts,
    }


def summary(report: Mapping[str, Any]) -> str:
    """The report in a few lines."""
    median, count = report["median"], len(report["experts"])
    lines = [
        f"{count} experts converted: relative error {report['mean']:.2%} on average, {median:.2%} in the middle; worst:"
    ]
    lines += [
        f"  layer {one['layer']}, expert {one['expert']}: {one['relative']:.2%} "
        f"({one['relative'] / median if median else 1.0:.2f} of the middle), at most {one['largest']:.2%} of a row"
        for one in report["worst"]
    ]
    return "\n".join(lines)
