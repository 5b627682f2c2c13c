"""When what a lane owes the draft layer is written: full blocks at once, so that no later request waits for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.runtime import Row, RuntimeConfig, Step, open_runtime
from qwen36_neuron.runtime.cpu import CpuRuntime


@pytest.mark.parametrize("length", [BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 2 * BLOCK_SIZE - 2, 2 * BLOCK_SIZE])
def test_full_blocks_are_written_with_the_first_token_after_a_prompt(tiny_checkpoint: Path, length: int) -> None:
    config = RuntimeConfig(
        model=tiny_checkpoint,
        kernels="torch",
        max_model_len=512,
        num_blocks=9,
        num_lanes=1,
        max_drafts=1,
        max_proposals=1,
    )
    runtime = open_runtime(config)
    assert isinstance(runtime, CpuRuntime)
    assert runtime._drafts is not None
    runtime.run(Step((Row("a", 1, [5] * length, 0, range(1, 5)),)))
    for start in range(length, length + BLOCK_SIZE + 2):
        runtime.run(Step((Row("a", 1, [7], start, range(1, 5)),)))
        lane = runtime._drafts._lanes[1]
        assert lane.written >= (start + 1) // BLOCK_SIZE * BLOCK_SIZE, f"after {start + 1} tokens"
