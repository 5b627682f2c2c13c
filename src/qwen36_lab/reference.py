"""Transformers' own model of a checkpoint: what ours is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from qwen36_neuron.config import ModelConfig


def transformers_model(folder: str | Path) -> Any:
    """In fp32, with the vision tower: dense or a mixture of experts.

    Its class is named here, since transformers' automatic choice takes vLLM's configurations where vLLM was imported.
    """
    from transformers import Qwen3_5ForConditionalGeneration, Qwen3_5MoeForConditionalGeneration

    mixture = ModelConfig.from_pretrained(folder).moe is not None
    kind = Qwen3_5MoeForConditionalGeneration if mixture else Qwen3_5ForConditionalGeneration
    return kind.from_pretrained(folder, dtype=torch.float32).eval()
