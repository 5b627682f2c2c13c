"""Needles in a long prompt through vLLM's engine, with YaRN as model cards give it, beyond what is read at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine import Engine, greedy

from qwen36_lab.long_context import model
from qwen36_neuron.ops.attention.paged import SEGMENT

POSITIONS = 12288
LENGTH = SEGMENT + 1000
"""More than a segment, and than the model was made for; less than YaRN takes it to."""
DEPTHS = dict(enumerate((0.0, 0.01, 0.2, 0.5, 0.8, 0.965, 0.99, 1.0)))
VALUES = {key: (5 * key + 3) % model.VALUES for key in DEPTHS}


@pytest.fixture
def made(engines: list[Any], tmp_path: Path) -> Callable[..., Engine]:
    folder = model.make(tmp_path / "needle", POSITIONS)

    def make(**arguments: Any) -> Engine:
        sizes = {"max_model_len": 4 * POSITIONS, "max_num_seqs": 1, "max_num_batched_tokens": 8192}
        asked = {**sizes, "hf_overrides": model.yarn(POSITIONS), "skip_tokenizer_init": True, **arguments}
        engines.append(Engine(folder, **asked))
        return engines[-1]

    return make


@pytest.mark.parametrize("length", [SEGMENT, SEGMENT + 1, LENGTH])
def test_every_needle_is_found_after_a_cold_and_a_warm_prefix(made: Callable[..., Engine], length: int) -> None:
    """One after the other, so that all but the first go on from a checkpoint; the last needle is not in its prefix."""
    blocks = 4 * POSITIONS // 64 + 2
    engine = made(
        num_gpu_blocks_override=blocks,
        enable_prefix_caching=True,
        additional_config={"kernels": "torch", "num_slots": 16},
    )
    for key in DEPTHS if length == LENGTH else (3,):
        (found,) = engine.generate([model.prompt(length, DEPTHS, VALUES, key)], greedy(1))
        assert found == [model.ANSWERS + VALUES[key]], key
