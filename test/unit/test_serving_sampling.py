"""The sampling benchmark: both sides do a step of every mix. How fast either is, is not tested."""

from __future__ import annotations

import pytest

from qwen36_lab.serving.sampling import MIXES, Workload, compare


@pytest.mark.parametrize("mix", MIXES)
def test_both_sides_sample_every_mix(mix: str) -> None:
    found = compare(Workload(vocab=4000, prompt=8, output=3, rounds=2), MIXES[mix], 3)
    assert found["ours_ms"] > 0
    assert found["vllm_ms"] > 0
    low, high = found["ratio_range"]
    assert 0 < low <= found["ratio"] <= high
