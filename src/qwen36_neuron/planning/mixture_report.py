"""How a mixture decodes by the number of sequences, as numbers for programs and as a table for people."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rich.table import Table

from ..ops.moe.static import BlockPlan
from .estimate import Estimate
from .experts import PUBLISHED, expected_experts, most_experts
from .rates import roofline

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
HELD = 1024
"""Tokens that each sequence holds."""

ASSUMED = (
    "Experts of a step: expected where every token chooses independently and any set of experts is as likely as any "
    "other, and at worst, where no two tokens share one. Plain operations gather as many for any routing; rooflines "
    "are of those that have to be read. Measured by others, of the best public implementation (FP8, eight ranks): "
    f"{PUBLISHED['decode, batch 1']} tokens/s at batch 1, {PUBLISHED['decode, batch 128']:.0f} at 128, prompts at "
    f"{PUBLISHED['prefill']:.0f}."
)


def mixture_json(estimate: Estimate) -> dict[str, Any]:
    """Steps of 1 to 128 sequences in graphs made for so many; nothing of a dense model."""
    moe = estimate.model.moe
    if moe is None:
        return {}
    sizes = moe.num_experts, moe.num_experts_per_tok
    rows, worst = [], replace(estimate, worst_routing=True)
    for batch in BATCHES:
        phases = estimate.step_phases(batch, HELD)
        step, low, high = (
            sum(phase.seconds(side.rates) for phase in side.step_phases(batch, HELD))
            for side in (estimate, estimate.at("low"), estimate.at("high"))
        )
        experts = next(phase for phase in phases if phase.name == "experts")
        rows.append(
            {
                "batch": batch,
                "context": HELD,
                "experts_gathered": BlockPlan.of(batch, *sizes).blocks,
                "experts_expected": expected_experts(batch, *sizes),
                "experts_at_worst": most_experts(batch, *sizes),
                "experts_s": experts.seconds(estimate.rates),
                "experts_bound": experts.bound(estimate.rates),
                "step_s": step,
                "step_range_s": [low, high],
                "tokens_per_s": batch / step,
                "roofline_tokens_per_s": batch / roofline(phases, estimate.rates)[0],
                "roofline_at_worst_tokens_per_s": batch / roofline(worst.step_phases(batch, HELD), estimate.rates)[0],
            }
        )
    return {"mixture": {"assumed": ASSUMED, "published_tokens_per_s": PUBLISHED, "steps": rows}}


def mixture_table(result: dict[str, Any]) -> Table:
    """Steps by the number of sequences."""
    table = Table(title=f"{result['profile']}, {result['weights']}: decode by sequences, {HELD} tokens each, modelled")
    heads = ("sequences", "experts gathered", "expected", "at worst", "experts, ms", "step, ms", "tokens/s")
    for head in (*heads, "roofline", "at worst"):
        table.add_column(head, justify="right")
    for row in result["mixture"]["steps"]:
        table.add_row(
            str(row["batch"]),
            str(row["experts_gathered"]),
            f"{row['experts_expected']:.0f}",
            str(row["experts_at_worst"]),
            f"{1e3 * row['experts_s']:.1f}",
            f"{1e3 * row['step_s']:.1f}",
            f"{row['tokens_per_s']:.0f}",
            f"{row['roofline_tokens_per_s']:.0f}",
            f"{row['roofline_at_worst_tokens_per_s']:.0f}",
        )
    return table
