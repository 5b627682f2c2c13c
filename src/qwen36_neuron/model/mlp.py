"""SwiGLU feed-forward block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..config import ModelConfig
from .layers import LayerFactory


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)); gate and up are one projection, each rank's gate rows before its up rows."""

    def __init__(self, config: ModelConfig, layers: LayerFactory) -> None:
        super().__init__()
        self.gate_up_proj = layers.column(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = layers.row(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = self.gate_up_proj(x)
        half = both.shape[-1] // 2
        return self.down_proj(F.silu(both[..., :half]).mul_(both[..., half:]))
