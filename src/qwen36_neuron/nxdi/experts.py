"""The experts of a mixture in the graphs, of plain operations."""

from __future__ import annotations

import torch
from torch import nn

from ..ops.moe import Stack, static_experts

MATRICES = ("gate_up_proj", "down_proj")


class StaticExperts(nn.Module):
    """`model.layers.Experts` of one rank with static shapes.

    Attributes:
        gate_up_proj: [count, 2 inner of the rank, hidden], gates before ups. down_proj: [count, hidden, inner].
        gate_up_proj_scale, down_proj_scale: fp32 [count, out, 1] where the weights are FP8; else there are none.
    """

    def __init__(self, count: int, hidden_size: int, inner: int, fp8: bool = False) -> None:
        super().__init__()
        for name, size in zip(MATRICES, ((2 * inner, hidden_size), (hidden_size, inner)), strict=True):
            weight = torch.zeros(count, *size, dtype=torch.float8_e4m3fn if fp8 else None)
            self.register_parameter(name, nn.Parameter(weight, requires_grad=False))
            if fp8:
                scale = torch.ones(count, size[0], 1, dtype=torch.float32)
                self.register_parameter(f"{name}_scale", nn.Parameter(scale, requires_grad=False))

    def forward(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """A rank's part of the weighted sum of what each token's experts make of it, fp32 [tokens, hidden].

        Args:
            x: [tokens, hidden].
            weights: fp32 [tokens, top_k]; chosen: int64 [tokens, top_k]. See `ops.moe.route`.
        """
        gate_up, down = (Stack(getattr(self, name), getattr(self, f"{name}_scale", None)) for name in MATRICES)
        return static_experts(x, gate_up, down, weights, chosen)


def set_fp8_experts(network: nn.Module) -> None:
    """Have the experts of every layer in FP8, of a network that has no weights yet; the draft layer's are bf16."""
    for layer in network.layers:  # type: ignore[union-attr]
        held = layer.mlp.experts
        count, hidden, inner = held.down_proj.shape
        layer.mlp.experts = StaticExperts(count, hidden, inner, fp8=True)
