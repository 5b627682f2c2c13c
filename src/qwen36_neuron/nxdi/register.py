"""Make the model known to NxDI's own tools."""

from __future__ import annotations

from .application import NeuronQwen36ForCausalLM

MODEL_TYPES = ("qwen3_5", "qwen3_5_moe")


def register() -> None:
    """Add the models, dense and mixtures, to NxDI's table of model types.

    Nothing of NxDI is changed; calling it again does nothing.

    Raises:
        ImportError: the table cannot be imported. It imports every model of NxDI, some of which need transformers 4.
    """
    from neuronx_distributed_inference.utils import constants

    for name in MODEL_TYPES:
        constants.MODEL_TYPES.setdefault(name, {"causal-lm": NeuronQwen36ForCausalLM})
