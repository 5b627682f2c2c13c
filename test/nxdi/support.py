"""What the tests of this folder share."""

from __future__ import annotations

from typing import Any

import torch

from qwen36_neuron.runtime import Output, Row, Runtime, RuntimeConfig, Step
from qwen36_neuron.runtime.neuron import NeuronRuntime

BLOCKS = tuple(range(1, 9))
TOLERANCE = 1e-5


def runtime_config(container: Any, **changes: Any) -> RuntimeConfig:
    """The configuration that fits the container's artifact, with changes."""
    options = container.app.options
    settings: dict[str, Any] = {
        "model": container.app.model_path,
        "device": "neuron",
        "dtype": options.dtype,
        "max_model_len": options.max_model_len,
        "num_lanes": options.num_lanes,
        "num_blocks": options.num_blocks,
        "num_slots": options.num_slots,
        "tp_degree": options.tp_degree,
    }
    return RuntimeConfig(**(settings | changes))


def neuron(container: Any, **changes: Any) -> NeuronRuntime:
    """The Neuron runtime on a loaded container."""
    return NeuronRuntime(runtime_config(container, **changes), container.app)


def logits(runtime: Runtime, row: Row) -> torch.Tensor:
    """Run one row alone."""
    found = runtime.run(Step((row,))).rows[0].logits
    assert found is not None
    return found


def last(*row: Any, **settings: Any) -> Row:
    """A row that gives back the logits after its last token."""
    return Row("test", *row, output=Output.LOGITS, **settings)


def snapshot(container: Any) -> dict[str, torch.Tensor]:
    """A copy of every state."""
    return {name: state.detach().clone() for name, state in container.memory.named_parameters()}
