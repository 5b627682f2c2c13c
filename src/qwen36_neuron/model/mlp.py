"""SwiGLU feed-forward block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..ops.mlp import swiglu
from .layers import LayerFactory
from .norm import RMSNorm

Activation = Callable[[torch.Tensor], torch.Tensor]
"""[..., 2 n], gates before ups -> [..., n]."""


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)); gate and up are one projection, each rank's gate rows before its up rows.

    Args:
        summed: over the ranks; else a rank's partial result is given.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, layers: LayerFactory, summed: bool = True) -> None:
        super().__init__()
        self.gate_up_proj = layers.column(hidden_size, 2 * intermediate_size)
        self.down_proj = layers.row(intermediate_size, hidden_size, summed)
        self.activation: Activation = swiglu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.activation(self.gate_up_proj(x)))

    def add_to(self, x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
        """x + the block of its norm, [batch, tokens, hidden]."""
        return x + self(norm(x))


def set_activation(network: nn.Module, activation: Activation) -> None:
    """Have every feed-forward block of a network activated by `activation`."""
    for module in network.modules():
        if isinstance(module, MLP):
            module.activation = activation
