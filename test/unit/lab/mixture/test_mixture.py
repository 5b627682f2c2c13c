"""The benchmarks of a mixture: both sides compute the same, and ratios are of their times."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("numba")

import torch

from qwen36_lab.mixture.block import Blocks, Sizes
from qwen36_lab.mixture.model import Models
from qwen36_lab.mixture.turns import THEIR_FORMS
from qwen36_neuron.checkpoint.maker import PRESETS, make_checkpoint


def test_both_sides_compute_the_same() -> None:
    found = Blocks(Sizes(48, 40, experts=8, top_k=3), torch.get_num_threads()).compare(tokens=9, rounds=3)
    assert found["largest_difference"] <= 2e-6
    assert found["least_ratio"] <= found["ratio"] <= found["most_ratio"]
    assert all(found[f"{name}_ms"] > 0 for name in ("ours", *THEIR_FORMS))


def test_both_models_give_the_same_tokens(tmp_path: Path) -> None:
    """Of a prompt, and of steps of a batch after it."""
    models = Models(make_checkpoint(tmp_path / "model", PRESETS["tiny-moe"]), torch.get_num_threads(), 128)
    assert models.compare_prompt(70, 1)["same_token"] == 1.0
    found = models.compare_steps(2, 3)
    assert found["same_tokens"] == 1.0
    assert found["batch"] == 2
    assert all(found[f"{name}_ms"] > 0 for name in ("ours", *THEIR_FORMS))
