"""A runtime that is closed, or forgotten, gives its memory back to the machine."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from qwen36_neuron.config import BLOCK_SIZE, ModelConfig
from qwen36_neuron.runtime import DeviceError, Row, RuntimeConfig, Step, open_runtime

SIZE = 400 << 20
"""Bytes of KV that the test's runtime holds."""


def resident() -> int:
    """Bytes of this process that are in memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def opened(folder: Path) -> Any:
    blocks = SIZE // (ModelConfig.from_pretrained(folder).kv_bytes_per_token(4) * BLOCK_SIZE)
    runtime: Any = open_runtime(RuntimeConfig(model=folder, kernels="torch", num_blocks=blocks, num_lanes=2))
    runtime.warm_up()
    for pair in runtime.cache.kv.values():
        for tensor in pair:
            tensor.fill_(1.0)  # touched, so that it is in memory
    return runtime


@pytest.mark.parametrize("how", ["closed", "forgotten"])
def test_memory_is_given_back(tiny_checkpoint: Path, how: str) -> None:
    before = resident()
    runtime = opened(tiny_checkpoint)
    held = resident() - before
    assert held > 0.8 * SIZE
    gone = weakref.ref(runtime.model)
    if how == "closed":
        runtime.close()
        runtime.close()
        with pytest.raises(DeviceError, match="closed"):
            runtime.run(Step((Row("a", 1, [1], 0, (1,)),)))
        assert runtime.vocab_size == ModelConfig.from_pretrained(tiny_checkpoint).vocab_size
    else:
        del runtime
    gc.collect()
    assert gone() is None
    assert resident() - before < 0.3 * held
