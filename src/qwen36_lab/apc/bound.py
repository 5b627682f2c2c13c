"""What a cache of this kind could reuse at most, if it knew every request to come, found by linear programming.

A prefix that a request reuses has had to be held since it was last run: its KV blocks, and one state at its end. For
each request the blocks that were run before fall into segments with the same last run. The unknowns are how much of
each segment is reused, and up to which segment's end a state was held, both from 0 to 1; every request leaves others
what its own blocks do not take. Holding fractions of a state, or blocks by the fraction, is more than any cache can do,
so no policy, however it admits and evicts, reuses more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qwen36_lab.apc.simulator import CoveredCache, KeyedRequest, key_requests, replay
from qwen36_lab.apc.traces import MESSAGE_END, MESSAGE_START, TRACES
from qwen36_neuron.apc import BoundaryPlanner, PolicyConfig, PrefillCost, SlotPool
from qwen36_neuron.apc.keys import Key
from qwen36_neuron.config import BLOCK_SIZE, ModelConfig

from .replay import ALIGN, FACTOR, OURS, Budget


@dataclass(frozen=True, slots=True)
class Segment:
    """Blocks of a request's prompt that were last run by the same earlier request."""

    request: int
    since: int
    blocks: int
    first: bool
    """Whether it is the request's first."""


def segments(keyed_requests: Sequence[KeyedRequest]) -> list[Segment]:
    """All segments, request by request, each request's from the beginning of its prompt."""
    last: dict[Key, int] = {}
    found = []
    for request, keyed in enumerate(keyed_requests):
        start, limit = 0, (keyed.prompt_tokens - 1) // BLOCK_SIZE
        while start < limit and (since := last.get(keyed.path[start])) is not None:
            end = start
            while end < limit and last.get(keyed.path[end]) == since:
                end += 1
            found.append(Segment(request, since, end - start, start == 0))
            start = end
        last.update(dict.fromkeys(keyed.path, request))
    return found


def upper_bound(keyed_requests: Sequence[KeyedRequest], budget: Budget, free_split: bool) -> float:
    """Tokens that no policy can exceed with the memory of `budget`.

    Args:
        keyed_requests: the trace.
        budget: KV blocks and slots.
        free_split: let the bytes of both be divided anew between them, once for the whole trace.
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_matrix

    parts = segments(keyed_requests)
    count = len(parts)
    state_blocks = budget.state_bytes / budget.block_bytes
    entries: list[tuple[int, int, float]] = []
    limits: list[float] = []

    def at_most(limit: float, terms: list[tuple[int, float]]) -> None:
        entries.extend((len(limits), column, value) for column, value in terms)
        limits.append(limit)

    # Unknowns: `count` shares of segments, `count` states at their ends, and the slots where their number is free.
    for index, part in enumerate(parts):
        end = next((i for i in range(index + 1, count) if parts[i].request != part.request), count)
        at_most(0, [(index, 1), *((count + i, -1) for i in range(index, end))])
        if part.first:
            at_most(1, [(count + i, 1) for i in range(index, end)])
    for now, keyed in enumerate(keyed_requests):
        after = [i for i, part in enumerate(parts) if part.since <= now < part.request]
        across = [i for i in after if parts[i].since < now]
        own = -(-keyed.run_tokens // BLOCK_SIZE)
        slots = [(2 * count, -1.0)] if free_split else []
        memory = budget.kv_blocks + (budget.num_slots * state_blocks if free_split else 0)
        share = [(2 * count, state_blocks)] if free_split else []
        at_most(memory, [*((i, parts[i].blocks) for i in after), *share])
        at_most(memory - own, [*((i, parts[i].blocks) for i in across), *share])
        at_most(0 if free_split else budget.num_slots, [*((count + i, 1.0) for i in after), *slots])
    rows, columns, values = zip(*entries, strict=True)
    size = 2 * count + free_split
    solved = linprog(
        [-BLOCK_SIZE * part.blocks for part in parts] + [0.0] * (size - count),
        A_ub=coo_matrix((values, (rows, columns)), shape=(len(limits), size)).tocsr(),
        b_ub=limits,
        bounds=[(0, 1)] * (2 * count) + [(0, None)] * free_split,
        method="highs",
    )
    if not solved.success:
        raise RuntimeError(f"the bound was not found: {solved.message}")
    return -float(solved.fun)


def run(
    traces: Sequence[str], slots: Sequence[int], kv_ratio: float, seed: int, model: Path, others: Path, console: Console
) -> dict[str, Any]:
    """The bounds beside what the policy reuses in its simulator, and beside `align` where `others` has it.

    Args:
        others: traces.json of an earlier --trace; used where its seed and sizes are the same.
    """
    config = ModelConfig.from_dict(json.loads(model.read_text()))
    cost, known = PrefillCost.of(config), _align(others, seed)
    table = Table(title=f"tokens reused, of those that could be; seed {seed}")
    for heading in ("trace", "slots", "ours", "bound", "bound, best split", "align", "ours / align", "bound / align"):
        table.add_column(heading, justify="left" if heading == "trace" else "right")
    cells = []
    for name in traces:
        keyed_requests = key_requests(TRACES[name](seed))
        for num_slots in slots:
            budget = Budget.of(config, num_slots, kv_ratio)
            policy = PolicyConfig(num_slots, frozenset({MESSAGE_START}), frozenset({MESSAGE_END}))
            cache = CoveredCache(OURS, BoundaryPlanner(policy), SlotPool(num_slots, cost), budget.kv_blocks)
            ours = replay(keyed_requests, cache, cost)
            bound, best = (upper_bound(keyed_requests, budget, free) for free in (False, True))
            align = known.get((name, num_slots, budget.kv_blocks))
            cells.append(
                {
                    "trace": name,
                    "slots": num_slots,
                    "reusable": ours.reusable,
                    "ours": ours.reused,
                    "bound": bound,
                    "bound_best_split": best,
                    "align": align,
                    "possible": None if align is None else best / align >= FACTOR,
                }
            )
            shares = [f"{tokens / ours.reusable:.3f}" for tokens in (ours.reused, bound, best)]
            against = ["", "", ""]
            if align is not None:
                against = [f"{align / ours.reusable:.3f}", f"{ours.reused / align:.2f}x", f"{bound / align:.2f}x"]
            table.add_row(name, str(num_slots), *shares, *against)
    console.print(table)
    return {"seed": seed, "kv_ratio": kv_ratio, "cells": cells}


def _align(path: Path, seed: int) -> dict[tuple[str, int, int], int]:
    """What `align` reused, by trace, slots and KV blocks."""
    if not path.is_file():
        return {}
    stored = json.loads(path.read_text())
    if stored["seed"] != seed:
        return {}
    return {
        (cell["trace"], cell["slots"], cell["memory"]["kv_blocks"]): cell["results"][ALIGN]["reused"]
        for cell in stored["cells"]
    }
