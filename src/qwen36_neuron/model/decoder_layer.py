"""One layer of the decoder."""

from __future__ import annotations

import torch
from torch import nn

from ..config import LayerType, ModelConfig
from .attention import Attention
from .deltanet import GatedDeltaNet
from .layers import LayerFactory
from .moe import feed_forward
from .norm import RMSNorm
from .state import StepState, select_tokens


class DecoderLayer(nn.Module):
    """h = x + mixer(norm(x)); y = h + mlp(norm(h)); `mlp` is a mixture of experts where the model is one."""

    def __init__(self, config: ModelConfig, layers: LayerFactory, index: int, kind: LayerType) -> None:
        super().__init__()
        self.input_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mixer: Attention | GatedDeltaNet
        if kind is LayerType.ATTENTION:
            self.mixer = Attention(config, layers, index)
        else:
            self.mixer = GatedDeltaNet(config, layers, index)
        self.mlp = feed_forward(config, layers)

    def forward(
        self,
        x: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        state: StepState,
        last: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[batch, tokens, hidden] in and out; with `last`, see `Qwen36Model.forward`, [batch, 1, hidden] out."""
        if isinstance(self.mixer, Attention):
            x = self.mixer.add_to(x, self.input_norm, rotary, state, last)
        else:
            x = self.mixer.add_to(x, self.input_norm, state)
            x = x if last is None else select_tokens(x, last)
        return self.mlp.add_to(x, self.post_norm)
