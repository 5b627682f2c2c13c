"""Checkpoints with a `quantization_config`, as vLLM is told of them.

vLLM finds a method for a checkpoint by its `quant_method`, whose class then builds vLLM's own layers, for its own
hardware and number formats. Here the runtime reads the checkpoint by itself, so one method of our own stands for all of
them, registered as vLLM provides for platforms like this one.
"""

from __future__ import annotations

from typing import Any

import torch
import vllm.config
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from qwen36_neuron.checkpoint.formats import ROOT, Format, declared, methods, read_format
from qwen36_neuron.errors import ConfigError

from .settings import Settings

NAME = "qwen36"
"""What vLLM calls the method of every quantised checkpoint here, in its logs."""

ADDED = ("total_num_heads", "total_num_kv_heads")
"""Keys that vLLM itself puts into a checkpoint's `quantization_config`, in `get_quant_config`."""


class CheckpointQuantization(QuantizationConfig):
    """Holds what the checkpoint says and decides nothing: the runtime reads the checkpoint itself."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__()
        self.content = content

    def get_name(self) -> Any:
        """Not one of vLLM's own names."""
        return NAME

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Those of the runtime."""
        return [torch.float32, torch.bfloat16]

    @classmethod
    def get_min_capability(cls) -> int:
        """Of a GPU: none is needed."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None beside config.json."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CheckpointQuantization:
        """From `quantization_config`."""
        return cls(config)

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> Any:
        """Every checkpoint that declares a method is ours; `check_quantization` then says whether it is served."""
        return NAME

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> None:
        """None: vLLM builds no layers here."""


def register() -> None:
    """Make the method known to vLLM, once in a process."""
    if NAME not in QUANTIZATION_METHODS:
        register_quantization_config(NAME)(CheckpointQuantization)


def check_quantization(model: vllm.config.ModelConfig, settings: Settings, asked: str | None = None) -> Format | None:
    """The checkpoint's format, if it declares one; what is not served is refused by its key in `quantization_config`.

    Args:
        asked: --quantization as the user gave it; it may say what the checkpoint is, and nothing else.
    Raises:
        ConfigError: the checkpoint's format is not served, or not on this device, or another one is asked for.
    """
    found = declared(model.hf_config.to_dict())
    method = None if found is None else str(found.get("quant_method"))
    asked = asked or (model.quantization if model.quantization != NAME else None)
    if asked is not None and (method is None or asked.lower() not in methods(method)):
        says = (
            "is not quantised, and weights are not quantised while it is loaded" if method is None else f"is {method}"
        )
        remedy = "Remove --quantization" if method is None else f"Remove --quantization, or give {method}"
        raise ConfigError("quantization", asked, f"the checkpoint {says}", remedy)
    own = {name: value for name, value in (found or {}).items() if name not in ADDED}
    form = read_format({ROOT: own})
    if form is not None and settings.device == "neuron":
        remedy = "Compile it with `qwen36 compile --weights fp8` or bf16, and serve the folder that this writes"
        raise ConfigError("model", form.name, "is not run on a Neuron device as it is published", remedy)
    return form
