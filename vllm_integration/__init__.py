"""The vLLM plugin: a platform, its worker and its cache managers, reached through vLLM's entry points alone.

This module is imported in every vLLM process, so it imports neither torch nor vLLM's engine.
"""

from __future__ import annotations

import logging
import os
from importlib.metadata import entry_points

PLUGIN_NAME = "qwen36_neuron"
"""The name of both entry points, which is what VLLM_PLUGINS selects by."""

ARCHITECTURES = (
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5ForCausalLM",
    "Qwen3_5MoeForConditionalGeneration",
    "Qwen3_5MoeForCausalLM",
)
"""Architectures that `register` takes over, dense and mixtures of experts, as their config.json names them."""

_OTHER_PLUGIN = "vllm_neuron"

logger = logging.getLogger("vllm.vllm_integration")


def platform_plugin() -> str | None:
    """Entry point of `vllm.platform_plugins`: the dotted path of the platform, or None to stand aside."""
    if not _chosen():
        return None
    return "vllm_integration.platform.QwenPlatform"


def register() -> None:
    """Entry point of `vllm.general_plugins`: the model classes and parsers, as names to import when asked for.

    Re-entrant.
    """
    if not _chosen():
        return
    from vllm.model_executor.models import ModelRegistry

    from . import parsers

    for architecture in ARCHITECTURES:
        ModelRegistry.register_model(architecture, "vllm_integration.model_stub:QwenStub")
    parsers.register()


def _chosen() -> bool:
    """Whether this plugin is the one to run: always, unless AWS's plugin is installed and is not excluded."""
    other = [
        point.name
        for point in entry_points(group="vllm.platform_plugins")
        if point.value.split(":")[0].split(".")[0] == _OTHER_PLUGIN
    ]
    selected = os.environ.get("VLLM_PLUGINS")
    names = None if selected is None else [name.strip() for name in selected.split(",")]
    if not other or (names is not None and not set(other) & set(names)):
        return True
    logger.warning(
        "%s stands aside for the installed vLLM Neuron plugin (%s). Set VLLM_PLUGINS=%s to use this one instead.",
        PLUGIN_NAME,
        ", ".join(other),
        PLUGIN_NAME,
    )
    return False
