"""The mixture of experts: a router, the experts that it chooses from, and an expert that every token has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..config import ModelConfig
from ..ops.moe import route
from .layers import LayerFactory, Linear
from .mlp import MLP
from .norm import RMSNorm


class Mixture(nn.Module):
    """sum over the chosen of weight * expert(x), + sigmoid(shared_gate(x)) * shared(x).

    Every rank holds the router and the shared expert's gate whole and routes alike; each expert is split inside itself,
    over its inner channels, as the feed-forward block of a dense model is. What routed experts and the shared one give
    is summed over the ranks once.
    """

    def __init__(self, config: ModelConfig, layers: LayerFactory) -> None:
        super().__init__()
        assert config.moe is not None
        moe = config.moe
        self.top_k, self.renormalise = moe.num_experts_per_tok, moe.norm_topk_prob
        self.router = Linear(config.hidden_size, moe.num_experts)
        self.experts = layers.experts(moe.num_experts, config.hidden_size, moe.moe_intermediate_size)
        self.shared = MLP(config.hidden_size, moe.shared_expert_intermediate_size, layers, summed=False)
        self.shared_gate = Linear(config.hidden_size, 1)
        self.total = layers.total

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., hidden] in and out."""
        rows = x.reshape(-1, x.shape[-1])
        weights, chosen = route(self.scores(rows), self.top_k, self.renormalise)
        of_all = self.gate(rows) * self.shared(x).view(rows.shape)  # of x: NxD's quantised layers take three dimensions
        return self.total(self.experts(rows, weights, chosen) + of_all).to(x.dtype).view(x.shape)

    def scores(self, rows: torch.Tensor) -> torch.Tensor:
        """The router's logits, fp32 [tokens, experts]: bf16 products would decide near ties by rounding."""
        return F.linear(rows.float(), self.router.weight.float())

    def gate(self, rows: torch.Tensor) -> torch.Tensor:
        """How much of the shared expert each token has, [tokens, 1]."""
        return torch.sigmoid(self.shared_gate(rows))

    def add_to(self, x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
        """x + the block of its norm, [batch, tokens, hidden]."""
        return x + self(norm(x))


def feed_forward(config: ModelConfig, layers: LayerFactory) -> MLP | Mixture:
    """The feed-forward block of a layer: a mixture's is one of experts, in every layer."""
    if config.moe is not None:
        return Mixture(config, layers)
    return MLP(config.hidden_size, config.intermediate_size, layers)
