"""Work for every kind of graph, that reaches every input of it."""

from __future__ import annotations

from typing import Any

import torch

from qwen36_neuron.graph.inputs import DraftRow, decode_inputs, draft_inputs, graph_inputs, verify_inputs
from qwen36_neuron.runtime import Commit, Row, Sampling


def rows(prefill: bool, active: int, prefix: int, lanes: int) -> list[Row]:
    """Work that reaches every input: a start inside a block, a restored state, a checkpoint, drawn and greedy rows."""
    if prefill:
        start = 64 if prefix else 0
        tokens = [(7 * n + 3) % 1000 for n in range(active - 27)]
        commits = (Commit(start + 64, 2),)
        restore = 1 if prefix else None
        return [Row("a", 1, tokens, start, range(1, 9), restore, commits, sampling=Sampling(1.0, 0.4, 20, 0.95))]
    commit = (Commit(64, 2),)
    first = Row("a", 1, [11], 63, range(1, 9), commits=commit, sampling=Sampling(1.3, 0.7, top_k=20))
    return [first, *(Row(str(n), n, [5 + n], 64 + n, range(8, 16)) for n in range(2, lanes))]


def drafted_rows(lanes: int) -> tuple[list[Row], list[int]]:
    """For a verify graph: rows of all drafts and of none, drafts taken in over a boundary; how many each takes in."""
    how = Sampling(1.3, 0.7, top_k=20, later=(0.2, 0.5))
    first = Row("a", 1, [11], 65, range(1, 9), commits=(Commit(64, 2),), sampling=how, drafts=(12, 13))
    others = [Row(str(n), n, [5 + n], 63 + n, range(8, 16), drafts=(3,) * (3 * (n % 2))) for n in range(2, lanes)]
    return [first, *others], [2, *(n - 2 for n in range(2, lanes))]


def rows_to_draft(count: int) -> list[DraftRow]:
    """For a draft graph: rows behind accepted drafts and behind none, over a boundary, one that wants fewer drafts."""
    first = DraftRow(1, 11, 63, 2, range(1, 9), 2)
    return [first, *(DraftRow(n, 5 + n, 64 + n, n - 2, range(8, 16), 1) for n in range(2, count))]


def inputs(app: Any, wrapper: Any, index: int) -> tuple[torch.Tensor, ...]:
    """Inputs of the wrapper's graph of that index."""
    active, size = wrapper.neuron_config.buckets[index]
    settings = app.options
    if wrapper.is_prefill:
        return graph_inputs(wrapper.lay_out(rows(True, active, size, 1)))
    if wrapper.drafts:
        drafts, count, size = settings.draft_graphs[index]
        return graph_inputs(draft_inputs(rows_to_draft(count), count, size, drafts))
    count, size = settings.decode_graphs[index]
    if wrapper.verifies:
        drafted, accepted = drafted_rows(count)
        sizes = count, size, settings.max_drafts, settings.decode_commits, settings.num_lanes
        return graph_inputs(verify_inputs(drafted, accepted, *sizes, wrapper.draws))
    work = rows(False, active, size, count)
    return graph_inputs(decode_inputs(work, count, size, settings.decode_commits, settings.num_lanes, wrapper.draws))
