"""Greedy tokens through vLLM equal Hugging Face's `generate` on the same checkpoint, alone and together."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from engine import greedy, greedy_of_transformers
from recorder import Recorder

from qwen36_neuron.runtime.interpreted import InterpretedRuntime

COUNT = 12
LENGTHS = (1, 5, 63, 64, 65, 130, 200, 333)


@pytest.fixture(scope="module")
def prompts(tiny_checkpoint: Path) -> list[list[int]]:
    rng = random.Random(7)
    return [[rng.randrange(1000) for _ in range(length)] for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path, prompts: list[list[int]]) -> list[list[int]]:
    return greedy_of_transformers(tiny_checkpoint, prompts, COUNT)


@pytest.mark.parametrize("budget", [64, 100, 512])
def test_equals_hugging_face(engine, prompts, expected, budget):
    served = engine(max_num_batched_tokens=budget, num_gpu_blocks_override=100)
    alone = [served.generate([prompt], greedy(COUNT))[0] for prompt in prompts]
    together = served.generate(prompts, greedy(COUNT))
    assert alone == expected
    assert together == expected


def test_equals_hugging_face_under_preemption(engine, prompts, expected):
    """Five blocks hold the three prompts; the first two grow into blocks that are not there."""
    served = engine(max_num_batched_tokens=512, num_gpu_blocks_override=6, max_model_len=256)
    recorder = served.worker.runner.runtime = Recorder(served.runtime)
    tight = [LENGTHS.index(length) for length in (63, 64, 130)]
    assert served.generate([prompts[i] for i in tight], greedy(COUNT)) == [expected[i] for i in tight]
    assert any(sum(row.start == 0 for row in rows) > 1 for rows in recorder.rows.values()), "nothing was preempted"


def test_equals_hugging_face_with_interpreted_kernels(engine, prompts, expected):
    """Chunked prefill beside decode, all operations as NKI kernels; then a prompt whose prefix is reused."""
    served = engine(
        max_num_batched_tokens=100,
        num_gpu_blocks_override=100,
        enable_prefix_caching=True,
        additional_config={"kernels": "interpreter", "num_slots": 8},
    )
    assert isinstance(served.runtime, InterpretedRuntime)
    assert served.generate(prompts, greedy(COUNT)) == expected
    recorder = served.worker.runner.runtime = Recorder(served.runtime)
    assert served.generate(prompts[-1:], greedy(COUNT)) == expected[-1:]
    assert any(row.restore is not None for rows in recorder.rows.values() for row in rows), "nothing was reused"
