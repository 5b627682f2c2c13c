"""The benchmark of a mixture's block: both sides compute the same, and its ratio is of their times."""

from __future__ import annotations

import pytest

pytest.importorskip("numba")

import torch

from qwen36_lab.mixture import THEIR_FORMS, Blocks, Sizes


def test_both_sides_compute_the_same() -> None:
    found = Blocks(Sizes(48, 40, experts=8, top_k=3), torch.get_num_threads()).compare(tokens=9, rounds=3)
    assert found["largest_difference"] <= 2e-6
    assert found["least_ratio"] <= found["ratio"] <= found["most_ratio"]
    assert all(found[f"{name}_ms"] > 0 for name in ("ours", *THEIR_FORMS))
