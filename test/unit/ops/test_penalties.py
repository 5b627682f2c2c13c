"""Counting tokens as they come: the same table as counting anew."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from qwen36_neuron.ops.sampling import TokenCounts, penalise


@pytest.mark.parametrize("prompt", [[], [5], [3, 3, 900, 7] * 40])
def test_counted_one_by_one(prompt: list[int]) -> None:
    rng = random.Random(len(prompt))
    counts, generated = TokenCounts(prompt), []
    for _ in range(60):
        new = [rng.choice([3, 4, 900, rng.randrange(1000)]) for _ in range(rng.randrange(4))]
        counts.add(new)
        generated += new
        times = Counter(generated)
        table = dict(zip(counts.tokens.tolist(), counts.times.tolist(), strict=True))
        assert counts.size == len(table) == len(set(prompt) | set(generated))
        assert table == {token: times[token] for token in {*prompt, *generated}}


def test_only_tokens_that_occur_change() -> None:
    logits = np.array([2.0, -2.0, 0.0, -np.inf, 5.0, 6.0], np.float32)
    counts = TokenCounts([0, 1])
    counts.add([1, 1, 3, 4])
    penalise(logits, counts, 2.0, 0.25, 1.0)
    assert logits.tolist() == [1.0, -4.0 - 0.5 - 1.0, 0.0, -np.inf, 2.5 - 0.25 - 1.0, 6.0]


def test_no_token_no_change() -> None:
    logits = np.array([1.0, 2.0], np.float32)
    penalise(logits, TokenCounts(), 2.0, 1.0, 1.0)
    assert logits.tolist() == [1.0, 2.0]
