"""Scheduling without prefix caching, on the fake runtime: any stale or mixed-up memory changes the tokens."""

from __future__ import annotations

import random

import pytest
from engine import greedy
from fake_runtime import expected_tokens

LENGTHS = (1, 2, 63, 64, 65, 127, 128, 129, 500)


def prompts_of(lengths: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(512) for _ in range(length)] for length in lengths]


@pytest.mark.parametrize("budget", [64, 100, 512])
def test_tokens_at_every_chunk_budget(fake_engine, budget):
    engine = fake_engine(max_num_batched_tokens=budget, num_gpu_blocks_override=100)
    prompts = prompts_of(LENGTHS)
    for prompt in prompts[:3]:
        assert engine.generate([prompt]) == [expected_tokens(prompt, 16)]
    assert engine.generate(prompts) == [expected_tokens(prompt, 16) for prompt in prompts]
    assert max(sum(len(row.tokens) for row in step.rows) for step in engine.runtime.steps) <= budget


@pytest.mark.parametrize("protocol", ["0", "1"])
def test_preemption_and_resume(fake_engine, monkeypatch, protocol):
    """vLLM announces a resumed request in one of two ways, depending on whether Triton is there."""
    monkeypatch.setattr("vllm.config.vllm.HAS_TRITON", True)
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", protocol)
    engine = fake_engine(max_num_batched_tokens=256, num_gpu_blocks_override=14, max_model_len=768)
    prompts = prompts_of((120, 250, 60, 180, 126, 190, 64, 63))
    assert engine.generate(prompts, greedy(100)) == [expected_tokens(prompt, 100) for prompt in prompts]
    restarts = sum(row.start == 0 for step in engine.runtime.steps for row in step.rows)
    assert restarts > len(prompts)
