"""Gated DeltaNet: convolution, gates, gated delta rule and gated norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..config import ModelConfig
from .layers import LayerFactory
from .norm import GatedRMSNorm, RMSNorm
from .state import StateOperations, StepState


class GatedDeltaNet(nn.Module):
    """The linear-attention mixer.

    beta = sigmoid(b) and g = -exp(A_log) * softplus(a + dt_bias), both fp32; the parameter A is -exp(A_log).
    """

    A: nn.Parameter
    dt_bias: nn.Parameter

    def __init__(self, config: ModelConfig, layers: LayerFactory, index: int) -> None:
        super().__init__()
        rank = config.rank(layers.tp)
        self.index = index
        self.key_heads, self.value_heads = rank.num_key_heads, rank.num_value_heads
        self.key_head_dim, self.value_head_dim = config.key_head_dim, config.value_head_dim
        self.conv_channels = rank.conv_channels
        self.in_proj_qkvz = layers.column(config.hidden_size, config.conv_channels + config.value_dim)
        self.in_proj_ba = layers.column(config.hidden_size, 2 * config.num_value_heads)
        self.conv_weight = nn.Parameter(torch.empty(rank.conv_channels, config.conv_kernel), requires_grad=False)
        self.A = nn.Parameter(torch.empty(rank.num_value_heads, dtype=torch.float32), requires_grad=False)
        self.dt_bias = nn.Parameter(torch.empty(rank.num_value_heads, dtype=torch.float32), requires_grad=False)
        self.norm = GatedRMSNorm(config.value_head_dim, config.rms_norm_eps)
        self.out_proj = layers.row(config.value_dim, config.hidden_size)

    def forward(self, x: torch.Tensor, state: StepState) -> torch.Tensor:
        """[batch, tokens, hidden] in and out."""
        return self.out_proj(state.delta_net(self, x))

    def add_to(self, x: torch.Tensor, norm: RMSNorm, state: StepState) -> torch.Tensor:
        """x + the mixer of its norm, [batch, tokens, hidden]."""
        return self(norm(x), state) + x

    def mix(self, x: torch.Tensor, state: StateOperations) -> torch.Tensor:
        """All before the output projection, operation by operation.

        Args:
            x: [batch, tokens, hidden].
        Returns:
            [batch, tokens, value_heads * value_head_dim].
        """
        out, z = self.between(self.in_proj_qkvz(x), self.in_proj_ba(x), state)
        return self.norm(out, z).flatten(2)

    def between(
        self, qkvz: torch.Tensor, ba: torch.Tensor, state: StateOperations
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What lies between the input projections and the gated norm.

        Args:
            qkvz: [batch, tokens, conv_channels + value_heads * value_head_dim]; ba: [batch, tokens, 2 * value_heads].
        Returns:
            The delta rule's output and z, [batch, tokens, value_heads, value_head_dim].
        """
        batch, tokens = qkvz.shape[:2]
        z = qkvz[..., self.conv_channels :].view(batch, tokens, self.value_heads, self.value_head_dim)
        beta = torch.sigmoid(ba[..., : self.value_heads]).float()
        g = self.A * F.softplus(ba[..., self.value_heads :].float() + self.dt_bias)
        qkv = state.convolve(self.index, qkvz[..., : self.conv_channels], self.conv_weight)
        key_dim = self.key_heads * self.key_head_dim
        q, k, v = qkv[..., :key_dim], qkv[..., key_dim : 2 * key_dim], qkv[..., 2 * key_dim :]
        out = state.delta_rule(
            self.index,
            q.view(batch, tokens, self.key_heads, self.key_head_dim),
            k.view(batch, tokens, self.key_heads, self.key_head_dim),
            v.view(batch, tokens, self.value_heads, self.value_head_dim),
            g,
            beta,
        )
        return out, z
