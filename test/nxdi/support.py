"""What the tests of this folder share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qwen36_neuron.nxdi.application import NeuronQwen36ForCausalLM
from qwen36_neuron.nxdi.config import Qwen36InferenceConfig
from qwen36_neuron.runtime import Output, Row, Runtime, RuntimeConfig, Step
from qwen36_neuron.runtime.neuron import NeuronRuntime

from .rig.container import CpuContainer

BLOCKS = tuple(range(1, 9))
TOLERANCE = 1e-5
TRAINED = Path(__file__).resolve().parents[2] / "assets" / "demo-checkpoint"


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


def prompts(count: int) -> list[list[int]]:
    """Questions of the kind that the trained checkpoint has seen."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TRAINED)
    asked = [f"What is {17 + 9 * n} + {25 + 4 * n}?" for n in range(count)]
    turns = [[{"role": "user", "content": text}] for text in asked]
    return [tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False) for turn in turns]


def save_artifact(checkpoint: Path, options: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder like a compiled one. Only reading compiled graphs from it is stood in for."""
    Qwen36InferenceConfig.from_checkpoint(checkpoint, options).save(str(folder))
    (folder / "model.pt").touch()
    monkeypatch.setattr(NeuronQwen36ForCausalLM, "load", lambda app, folder, skip_warmup: CpuContainer(app))
