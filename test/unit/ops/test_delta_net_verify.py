"""Rows that verify drafts through the compiled block, against the fp64 recurrence over what was confirmed."""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("numba")

import numpy as np
from delta_net_cases import Bank, Result, Shape, definition, inputs_of, memory, weights_of

from qwen36_neuron.ops.gated_delta_rule.numba_verify import delta_net_verify
from qwen36_neuron.ops.numba.drafts import Factors, VerifyRows
from qwen36_neuron.ops.numba.states import Entries
from qwen36_neuron.ops.numba.weights import DeltaNetWeights

TOLERANCE = 1e-5
"""Of the largest magnitude of the fp64 result, as of the other forms: see test_gated_delta_rule.py."""
MOST = 16
SHAPE = Shape(key_heads=2)


def factors(shape: Shape, lanes: int) -> Factors:
    """Of lanes that have run no drafts: whatever is read before it is written shows."""
    sizes = (shape.channels,), (shape.key_heads, shape.dk), (shape.value_heads, shape.dv)
    made = [np.full((1 + lanes, MOST, *size), np.nan, np.float32) for size in (*sizes, *[(shape.value_heads,)] * 2)]
    return Factors(*made)


def verified(
    x: torch.Tensor,
    w: DeltaNetWeights,
    shape: Shape,
    bank: Bank,
    seed: int,
    marks: dict[int, int],
    fresh: bool = False,
    restored: bool = False,
) -> torch.Tensor:
    """Outputs of x [rows, tokens, width], run in calls of any number of right and of wrong drafts a row.

    Args:
        marks: which slot keeps the state of row 0 after so many tokens.
    """
    choice, rows, tokens = random.Random(seed), x.shape[0], x.shape[1]
    pending, out = factors(shape, rows), torch.full((rows, tokens, shape.value_heads * shape.dv), torch.nan)
    small = w.taps, w.rate, w.dt_bias, w.norm_weight, w.eps
    held, right = [0] * rows, [0] * rows  # confirmed tokens whose state is left, and drafts behind them to take in
    shapes = set()
    while any(held[row] + right[row] < tokens for row in range(rows)):
        active = [row for row in range(rows) if held[row] + right[row] < tokens]
        parts, plan = [], []
        for row in active:
            start = held[row] + right[row]
            drafts = choice.choice((0, 0, 1, 3, MOST))
            good = choice.randint(0, min(drafts, tokens - start - 1))
            wrong = torch.randn(drafts - good, x.shape[2], generator=torch.Generator().manual_seed(start))
            parts.append(torch.cat((x[row, start : start + 1 + good], wrong)))
            plan.append((row, start, drafts, good))
            shapes.add((right[row], drafts))
        where = VerifyRows(
            lanes=np.array([bank.lanes[row] for row in active], np.int64),
            sources=np.array([(bank.lanes if held[row] else bank.sources)[row] for row in active], np.int64),
            fresh=np.array([fresh and not held[row] for row in active]),
            accepted=np.array([right[row] for row in active], np.int64),
            tokens=np.ones(len(active), np.int64),
            first=np.cumsum([0, *map(len, parts)], dtype=np.int64),
            starts=np.array([start for _, start, _, _ in plan], np.int64),
            tables=np.zeros((len(active), 1), np.int32),
            marks=np.array(
                [
                    (active.index(0), count - held[0], bank.slot(slot))
                    for count, slot in marks.items()
                    if 0 in active and held[0] < count <= held[0] + right[0] + 1
                ],
                np.int64,
            ).reshape(-1, 3),
        )
        found = torch.empty(int(where.first[-1]), out.shape[2])
        entries = Entries(bank.windows.numpy(), bank.states.numpy())
        delta_net_verify(torch.cat(parts).numpy(), small, w.key_heads, entries, pending, where, found.numpy())
        for index, (row, start, _, good) in enumerate(plan):
            first = int(where.first[index])
            out[row, start : start + 1 + good] = found[first : first + 1 + good]
            held[row], right[row] = start + 1, good
    assert len(shapes) > 4
    return _settled(x, w, shape, bank, pending, held, right, out)


def _settled(
    x: torch.Tensor,
    w: DeltaNetWeights,
    shape: Shape,
    bank: Bank,
    pending: Factors,
    held: list[int],
    right: list[int],
    out: torch.Tensor,
) -> torch.Tensor:
    """Take in what the last calls left unconfirmed, with one more token, which the lanes' states then have too."""
    rows = x.shape[0]
    where = VerifyRows(
        lanes=np.array(bank.lanes, np.int64),
        sources=np.array(bank.lanes, np.int64),
        fresh=np.zeros(rows, np.bool_),
        accepted=np.array(right, np.int64),
        tokens=np.ones(rows, np.int64),
        first=np.arange(rows + 1, dtype=np.int64),
        starts=np.array(held, np.int64),
        tables=np.zeros((rows, 1), np.int32),
        marks=np.zeros((0, 3), np.int64),
    )
    found = torch.empty(rows, out.shape[2])
    small = w.taps, w.rate, w.dt_bias, w.norm_weight, w.eps
    entries = Entries(bank.windows.numpy(), bank.states.numpy())
    delta_net_verify(x[:, -1].contiguous().numpy(), small, w.key_heads, entries, pending, where, found.numpy())
    return torch.cat((out, found[:, None]), dim=1)


def agrees(found: Result, expected: Result) -> None:
    for actual, exact in zip(found, expected, strict=True):
        assert (actual - exact).abs().max() <= TOLERANCE * exact.abs().max()


def run(x: torch.Tensor, w: DeltaNetWeights, shape: Shape, seed: int = 0, **how: bool) -> None:
    """Rows whose last token comes twice, since what is left unconfirmed is taken in by one more."""
    rows = x.shape[0]
    window, state = memory(shape, rows)
    if how.get("fresh"):
        window, state = torch.zeros_like(window), torch.zeros_like(state)
    held = [torch.full_like(part, torch.nan) if how.get("fresh") else part for part in (window, state)]
    marks = {3: 0, 9: 1, 10: 2, x.shape[1] - 2 - MOST: 3}  # all before the last call
    bank = Bank.of(*held, slots=len(marks), restored=how.get("restored", False))
    out = verified(x, w, shape, bank, seed, marks, **how)
    whole = torch.cat((x, x[:, -1:]), dim=1)
    states, windows = bank.left()
    for row in range(rows):
        one = slice(row, row + 1)
        agrees((out[one], states[one], windows[one]), definition(whole[one], w, window[one], state[one], shape))
    for count, slot in marks.items():
        _, kept, last = definition(x[:1, :count], w, window[:1], state[:1], shape)
        entry = bank.slot(slot)
        assert (bank.states[entry] - kept[0]).abs().max() <= TOLERANCE * kept.abs().max()
        assert torch.equal(bank.windows[entry].double(), last[0])


@pytest.mark.parametrize("correlation", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("beta", [0.5, 0.99])
@pytest.mark.parametrize("gate", [-1e-4, -1.0, -8.0])
def test_hostile_inputs(correlation: float, beta: float, gate: float) -> None:
    weights = weights_of(SHAPE)
    run(inputs_of(SHAPE, weights, 40, 3, correlation, beta, gate), weights, SHAPE)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("how", [{}, {"fresh": True}, {"restored": True}], ids=["held", "fresh", "restored"])
def test_rows_of_any_numbers_of_drafts(how: dict[str, bool], seed: int) -> None:
    weights = weights_of(SHAPE)
    run(inputs_of(SHAPE, weights, 40, 4, 0.5, seed=seed), weights, SHAPE, seed, **how)


@pytest.mark.parametrize(
    "shape", [Shape(taps=2, share=2), Shape(dk=36, dv=44), Shape(key_heads=3, share=1, dk=32, dv=64, taps=5)]
)
def test_any_shape(shape: Shape) -> None:
    """Sizes that leave a rest beside whole tiles, and convolutions of other lengths."""
    weights = weights_of(shape)
    run(inputs_of(shape, weights, 40, 2, 0.5), weights, shape)
