"""What NxD's builder traces: the module, and which outputs are its states."""

from __future__ import annotations

import torch
from neuronx_distributed_inference.models.model_wrapper import DecoderModelInstance
from torch import nn

from ..model.attention import SCALES
from ..model.norm import RMSNorm
from .model import NeuronQwen36Model


class Qwen36ModelInstance(DecoderModelInstance):
    """NxDI's instance with states, convolution windows and pending drafts aliased after the keys and values."""

    module: NeuronQwen36Model

    def load_module(self) -> None:
        """Build the module. Raises TypeError if anything that must stay in fp32 was cast."""
        super().load_module()
        check_fp32(self.module)

    def get(self, bucket_rank: int | None, **kwargs: object) -> tuple[nn.Module, dict[nn.Parameter, int]]:
        """The module set to a bucket, and the output that each state comes back in; the same states in every bucket.

        The device allocates the states that the first context-encoding bucket aliases, and no others.
        """
        module, aliases = super().get(bucket_rank, **kwargs)
        first = min(aliases.values())
        return module, {state: first + index for index, state in enumerate(module.kv_mgr.states())}


def check_fp32(module: NeuronQwen36Model) -> None:
    """Raises TypeError naming every parameter that is kept in fp32 by design and is not."""
    kept = {
        f"kv_mgr.{name}.{index}": state
        for name in ("recurrent", "factors")
        for index, state in enumerate(getattr(module.kv_mgr, name))
    }
    for name, block in module.network.named_modules():
        if isinstance(block, RMSNorm):
            kept[f"{name}.weight"] = block.weight
        for own in ("A", "dt_bias", *SCALES):
            if block._parameters.get(own) is not None:
                kept[f"{name}.{own}"] = getattr(block, own)
    cast = [f"{name} is {tensor.dtype}" for name, tensor in kept.items() if tensor.dtype is not torch.float32]
    if cast:
        raise TypeError(f"must be fp32: {', '.join(cast)}")
