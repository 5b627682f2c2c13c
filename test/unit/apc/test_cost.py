"""The cost of a prefix, against a count layer by layer."""

from __future__ import annotations

from typing import Any

import pytest

from qwen36_neuron.apc import PrefillCost
from qwen36_neuron.config import ModelConfig


def test_of_the_27b(published_27b: dict[str, Any]) -> None:
    cost = PrefillCost.of(ModelConfig.from_dict(published_27b))
    mlp = 3 * 5120 * 17408
    attention = 5120 * (2 * 24 * 256 + 2 * 4 * 256) + 24 * 256 * 5120
    deltanet = 5120 * (10240 + 6144 + 96) + 10240 * 4 + 6144 * 5120 + 3 * 48 * 128 * 128
    weights = 64 * mlp + 16 * attention + 48 * deltanet
    # What is left are norms and other vectors, less than a thousandth.
    assert cost.per_token == pytest.approx(2 * weights, rel=1e-3)
    assert cost.per_pair == 16 * 24 * 256 * 2 * 2


def test_a_prefix_is_the_sum_of_its_parts() -> None:
    cost = PrefillCost(per_token=3.0, per_pair=2.0)
    assert cost.prefix(0) == 0
    assert cost.prefix(10) == 30 + 100
    assert cost.between(4, 10) == cost.prefix(10) - cost.prefix(4) == 18 + 84
