"""Replays a recorded trace through the policies at equal memory, with an ablation of what the policy has learned.

Contestants and memory are those of `replay`, but for vLLM's own managers, which would run millions of decoding steps:
what the slots do there is what the simulator does. Every slot-based contestant keeps KV where a checkpoint needs it, as
this project does, so that a difference between them is one of which checkpoints are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qwen36_neuron.apc import BoundaryPlanner, PolicyConfig, PrefillCost, SlotPool
from qwen36_neuron.apc.checkpoint import Checkpoint
from qwen36_neuron.apc.record import WAIT
from qwen36_neuron.config import ModelConfig

from .baselines import EveryBlockPlanner, EveryBlockPool, LruPool, Marconi
from .mooncake import key, one_in, read
from .replay import ALPHAS, EVERY_BLOCK, LONGEST, LRU, MARCONI, OURS, Budget, figures
from .simulator import CoveredCache, KeyedRequest, PrefixCache, SlotCache, replay

UNLEARNED, LRU_COVERED = "FLOPs over age", "least recently used, our KV cover"
NAMES = (OURS, UNLEARNED, LRU_COVERED, LRU, EVERY_BLOCK, MARCONI)


class UnlearnedPool(SlotPool):
    """The ablation: the same boundaries and the same saving, and age in the place of all that is learned of reuse."""

    def priority(self, checkpoint: Checkpoint) -> float:
        return self.cost.between(checkpoint.base, checkpoint.boundary) / (WAIT + self.requests - checkpoint.used_at)


def contestants(budget: Budget, cost: PrefillCost) -> Iterator[tuple[str, Callable[[], PrefixCache]]]:
    """All of `NAMES`, Marconi once for each weight, in a cache of their own each time."""
    slots, blocks = budget.num_slots, budget.kv_blocks
    policy = PolicyConfig(slots)
    planner, every_block = BoundaryPlanner(policy), EveryBlockPlanner(policy)
    yield OURS, lambda: CoveredCache(OURS, planner, SlotPool(slots, cost), blocks)
    yield UNLEARNED, lambda: CoveredCache(UNLEARNED, planner, UnlearnedPool(slots, cost), blocks)
    yield LRU_COVERED, lambda: CoveredCache(LRU_COVERED, planner, LruPool(slots, cost), blocks)
    yield LRU, lambda: SlotCache(LRU, planner, LruPool(slots, cost), blocks)
    yield EVERY_BLOCK, lambda: SlotCache(EVERY_BLOCK, every_block, EveryBlockPool(slots, cost), blocks)
    state_blocks = budget.state_bytes / budget.block_bytes
    capacity = blocks + slots * state_blocks
    for alpha in ALPHAS:
        yield MARCONI, lambda alpha=alpha: Marconi(alpha, capacity, state_blocks, cost)  # type: ignore[misc]


def compare(keyed_requests: Sequence[KeyedRequest], budget: Budget, cost: PrefillCost) -> dict[str, Any]:
    """What each contestant reuses; of Marconi the weight that is best in hindsight, by tokens."""
    found: dict[str, Any] = {}
    for name, make in contestants(budget, cost):
        result = replay(keyed_requests, make(), cost)
        if name not in found or result.reused > found[name]["reused"]:
            found[name] = figures(result)
    return found


def run(
    file: Path, shares: Sequence[int], slot_counts: Sequence[int], kv_ratio: float, model: Path, console: Console
) -> dict[str, Any]:
    """Replay what one of N replicas sees, for each N of `shares`; print the table and return all of it for JSON.

    Raises:
        ConfigError: the file is not of the format.
    """
    recorded = read(file)
    config = ModelConfig.from_dict(json.loads(model.read_text()))
    cost = PrefillCost.of(config)
    cells = []
    for share in shares:
        keyed_requests, left_out = key(one_in(recorded, share), LONGEST)
        for num_slots in slot_counts if keyed_requests else ():
            budget = Budget.of(config, num_slots, kv_ratio)
            results = compare(keyed_requests, budget, cost)
            memory = asdict(budget) | {"total_bytes": budget.total_bytes}
            counts = {"requests": len(keyed_requests), "left_out": left_out}
            cells.append({"one_in": share, "slots": num_slots, **counts, "memory": memory, "results": results})
            console.print(f"1/{share}, {num_slots} slots: done", style="dim")
    result = {"file": file.name, "longest": LONGEST, "kv_ratio": kv_ratio, "cells": cells, "below": below(cells)}
    show(result, console)
    return result


def below(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells in which another policy reuses more than ours, and how many tokens more."""
    return [
        {"one_in": cell["one_in"], "slots": cell["slots"], "than": name, "tokens": other["reused"] - ours}
        for cell in cells
        for ours in [cell["results"][OURS]["reused"]]
        for name, other in cell["results"].items()
        if other["reused"] > ours
    ]


def show(result: dict[str, Any], console: Console) -> None:
    """Print the figures, and where ours is behind."""
    table = Table(title=f"{result['file']}: tokens reused, of those that could be")
    for heading in ("share", "requests", "slots", "reusable", *NAMES):
        table.add_column(heading, justify="right")
    for cell in result["cells"]:
        results = cell["results"]
        best = max(one["reused"] for one in results.values())
        shown = [f"{results[name]['of_reusable']:.3f}" for name in NAMES]
        shown = [
            f"[bold]{text}[/bold]" if results[name]["reused"] == best else text
            for name, text in zip(NAMES, shown, strict=True)
        ]
        reusable = results[OURS]["reusable"] / results[OURS]["prompt"]
        table.add_row(f"1/{cell['one_in']}", str(cell["requests"]), str(cell["slots"]), f"{reusable:.1%}", *shown)
    console.print(table)
    for one in result["below"]:
        console.print(
            f"[red]below[/red] {one['than']} by {one['tokens']} tokens: 1/{one['one_in']}, {one['slots']} slots"
        )
    console.print(f"cells below any other: {len(result['below'])}")
