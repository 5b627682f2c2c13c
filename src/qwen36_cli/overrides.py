"""What a command's user changes of a model, or consents to, in vLLM's own words."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError

OVERRIDES = "Fields of config.json to replace, as JSON: YaRN, for instance. As in vLLM."


def described(model: Path, hf_overrides: str | None) -> ModelConfig:
    """A model's description with overrides. Raises ConfigError naming what cannot be used."""
    return ModelConfig.from_pretrained(model, parsed_overrides(hf_overrides))


def parsed_overrides(text: str | None) -> dict[str, Any]:
    """The object that `--hf-overrides` gives. Raises ConfigError if it is none."""
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError("hf-overrides", text, f"is not JSON ({error})", "Give an object in quotes") from error
    if not isinstance(value, dict):
        raise ConfigError("hf-overrides", text, "must be an object", """Give '{"text_config": {...}}'""")
    return value


def long_allowed() -> bool:
    """vLLM's consent to sequences longer than the model's own, read as vLLM reads it."""
    return os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0").strip().lower() in ("1", "true")
