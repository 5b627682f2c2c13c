"""The figures that the fused kernels are to reach for the 27B on a trn2.3xlarge, what is reached, and what binds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .estimate import Estimate
from .rates import Phase, roofline
from .speculation import Speculation

TOKENS_A_ROUND, DRAFTS = 2.8, 3
"""Published of three drafts of the model's own layer at short contexts; see `speculation.LOW`."""

Work = Callable[[Estimate], list[Phase]]


def bars_json(estimate: Estimate) -> list[dict[str, Any]]:
    """Each bar with the figure that is reached, its range, the roofline and the phases by size.

    Args:
        estimate: of a profile with fused kernels and weights fp8-mlp; all-FP8 is taken where a bar says so.
    """
    eight = replace(
        estimate, profile=replace(estimate.profile, options=replace(estimate.profile.options, weights="fp8"))
    )

    def step(batch: int, context: int) -> Work:
        return lambda side: side.step_phases(batch, context)

    def prompt(tokens: int) -> Work:
        return lambda side: side.prompt_phases(tokens)

    def drafted(side: Estimate) -> list[Phase]:
        return Speculation(side, DRAFTS).phases_of(1, 8192)

    rows: list[tuple[str, Estimate, float, float, Work]] = [
        ("decode, 8K, batch 1, all FP8", eight, 60, 1, step(1, 8192)),
        ("decode, 8K, batch 1, FP8 MLPs", estimate, 45, 1, step(1, 8192)),
        ("decode, 1K, batch 8, all FP8", eight, 300, 8, step(8, 1024)),
        ("decode with 3 drafts, 2.8 tokens a round, 8K, batch 1, all FP8", eight, 120, TOKENS_A_ROUND, drafted),
        *((f"prefill, {round(tokens / 1024)}K, FP8 MLPs", estimate, bar, tokens, prompt(tokens))
          for tokens, bar in ((4096, 5000), (16384, 5000), (131008, 2500))),
    ]  # fmt: skip
    return [_bar(*row) for row in rows]


def _bar(name: str, estimate: Estimate, bar: float, tokens: float, work: Work) -> dict[str, Any]:
    low, centre, high = (
        sum(phase.seconds(side.rates) for phase in work(side))
        for side in (estimate.at("low"), estimate, estimate.at("high"))
    )
    phases = work(estimate)
    least, resource = roofline(phases, estimate.rates)
    by_name: dict[str, dict[str, Any]] = {}
    for phase in (one for one in phases if one.seconds(estimate.rates)):
        entry = by_name.setdefault(phase.name, {"ms": 0.0, "bound": phase.bound(estimate.rates)})
        entry["ms"] += 1e3 * phase.seconds(estimate.rates)
    return {
        "name": name,
        "bar_tokens_per_s": bar,
        "tokens_per_s": tokens / centre,
        "range_tokens_per_s": [tokens / high, tokens / low],
        "roofline_tokens_per_s": tokens / least,
        "roofline_bound": resource,
        "phases": dict(sorted(by_name.items(), key=lambda item: -item[1]["ms"])),
    }
