"""vLLM's engine on device=neuron: the plugin, the runtime and NxDI's code together, against the same on device=cpu."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL=os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
)

pytest.importorskip("vllm", reason="the engine's tests need vLLM; the others of this folder do not")

SIZES: dict[str, Any] = {
    "max_model_len": 512,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 200,
    "num_gpu_blocks_override": 65,
    "enable_prefix_caching": True,
}


def served(checkpoint: Path, prompts: list[list[int]], **settings: Any) -> tuple[list[list[int]], int]:
    """Greedy tokens of all prompts at once, then of the first again, and how many of its tokens were reused."""
    from engine import Engine, greedy

    engine = Engine(checkpoint, **SIZES, additional_config={"num_slots": 4, **settings})
    try:
        found = engine.generate(prompts, greedy(10))
        (again,) = engine.outputs(prompts[:1], greedy(10))
        return [*found, list(again.outputs[0].token_ids)], again.num_cached_tokens or 0
    finally:
        engine.close()


def test_the_engine_serves_the_same_tokens(tiny_checkpoint: Path, artifact: Path, tokens: list[int]) -> None:
    """Chunked prefill beside decode, six requests on four lanes, and a prompt that is reused."""
    prompts = [tokens[:300], tokens[:130], tokens[300:301], tokens[200:265], tokens[100:400], tokens[50:113]]
    expected, reused_on_cpu = served(tiny_checkpoint, prompts, kernels="torch")
    actual, reused = served(tiny_checkpoint, prompts, device="neuron", artifact=str(artifact))
    assert actual == expected
    assert reused == reused_on_cpu >= 64
