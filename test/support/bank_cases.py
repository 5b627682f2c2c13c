"""Rows, banks of states and inputs for the operations of `ops.kernels`, whose forms are compared on them."""

import torch

from qwen36_neuron.ops.banks import Batch, Span
from qwen36_neuron.ops.kernels import open_kernels

KEY_HEADS, HEADS, CHANNELS, ENTRIES = 2, 6, 1280, 7
TORCH = open_kernels("torch", 1)


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_bank(*shape: int) -> torch.Tensor:
    """States whose scratch entry is zero, as it is when a runtime starts."""
    made = normal(ENTRIES, *shape, seed=9)
    made[0] = 0.0
    return made


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    error = (actual.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert error <= tolerance, error


def make_span(first: int, end: int, source: int, commits: dict[int, int]) -> Span:
    """Commits are {blocks: entry}; unused ones follow, as a graph with room for four has them."""
    at = [*commits, *[1] * (4 - len(commits))]
    to = [*commits.values(), *[0] * (4 - len(commits))]
    return Span(int32(first), int32(end), int32(source) == 0, int32(source), int32(2), int32(*at), int32(*to))


SPANS = {
    "whole": make_span(0, 256, 3, {1: 4, 4: 5}),
    "starts": make_span(0, 256, 0, {2: 5, 3: 4}),
    "padded-at-both-ends": make_span(37, 150, 4, {1: 6, 2: 5}),
    "inside-one-block": make_span(5, 30, 2, {}),
    "ends-at-a-boundary": make_span(0, 128, 1, {2: 3}),
}

BATCHES = {
    # Rows: continues in its lane, starts, continues from a checkpoint, padding. One checkpoint, and one unused.
    "mixed": Batch(int32(9, 0, 9, 0) == 0, int32(1, 2, 5, 0), int32(1, 2, 3, 0), int32(2, 0), int32(6, 0)),
    "one": Batch(int32(9) == 0, int32(4), int32(4), int32(0), int32(0)),
}


def delta_rule_inputs(batch: int, tokens: int) -> tuple[torch.Tensor, ...]:
    """Correlated keys and strong writes: what a solve that is not safe fails on."""
    shared = normal(1, 1, KEY_HEADS, 128, seed=1)
    k = 0.9 * shared + 0.1 * normal(batch, tokens, KEY_HEADS, 128, seed=2)
    return (
        normal(batch, tokens, KEY_HEADS, 128, seed=3),
        k,
        normal(batch, tokens, HEADS, 128, seed=4),
        -0.05 * normal(batch, tokens, HEADS, seed=5).exp(),
        torch.sigmoid(2 + normal(batch, tokens, HEADS, seed=6)),
    )


def assert_banks_agree(actual: torch.Tensor, expected: torch.Tensor, before: torch.Tensor, tolerance: float) -> None:
    """Entries agree, those that nothing was written to to the bit, and the scratch entry stays zero."""
    assert not actual[0].any()
    for entry in range(1, ENTRIES):
        if torch.equal(expected[entry], before[entry]):
            assert torch.equal(actual[entry], before[entry]), entry
        else:
            assert_close(actual[entry], expected[entry], tolerance)
