"""What the tests of the prefix policy share: its own, and those of the simulator that replays traces through it."""

from __future__ import annotations

import pytest

from qwen36_neuron.apc import BoundaryPlanner, PolicyConfig, PrefillCost

START, END = 1, 2


@pytest.fixture
def cost() -> PrefillCost:
    """The 27B's, rounded."""
    return PrefillCost(per_token=5e10, per_pair=4e5)


@pytest.fixture
def planner() -> BoundaryPlanner:
    """For 64 slots, and a template whose messages open with token 1 and close with token 2."""
    return BoundaryPlanner(PolicyConfig(64, frozenset({START}), frozenset({END})))
