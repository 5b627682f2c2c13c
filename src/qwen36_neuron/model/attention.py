"""Gated grouped-query attention with per-head query and key norms and partial rotary embedding."""

from __future__ import annotations

import torch
from torch import nn

from ..config import ModelConfig
from ..ops.attention import apply_rotary
from .layers import LayerFactory
from .norm import RMSNorm
from .state import StateOperations, StepState, Storing, select_tokens


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v * sigmoid(gate), projected out.

    One projection gives a rank's queries, gates, keys and values in that order; the checkpoint's per-head
    interleaving of query and gate is undone by the loader.
    """

    def __init__(self, config: ModelConfig, layers: LayerFactory, index: int) -> None:
        super().__init__()
        rank = config.rank(layers.tp)
        self.index, self.head_dim = index, config.head_dim
        self.query_heads, self.kv_heads = rank.num_query_heads, rank.num_kv_heads
        heads = layers.tp * (2 * rank.num_query_heads + 2 * rank.num_kv_heads)
        self.in_proj_qgkv = layers.column(config.hidden_size, heads * config.head_dim)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.o_proj = layers.row(config.num_query_heads * config.head_dim, config.hidden_size)

    def forward(
        self,
        x: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        state: StepState,
        last: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mix the tokens of each row.

        Args:
            x: [batch, tokens, hidden].
            rotary: (cos, sin) of the tokens' positions.
            last: int [batch], places of the only tokens whose result is asked for. All keys and values are stored.
        Returns:
            [batch, tokens, hidden], or [batch, 1, hidden] with `last`.
        """
        return self.o_proj(state.attention(self, x, rotary, last))

    def mix(
        self,
        x: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        state: StateOperations,
        last: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """All before the output projection, operation by operation.

        Args:
            x, rotary, last: as in `forward`.
        Returns:
            [batch, tokens or 1, query_heads * head_dim].
        """
        q, gate, k, v = self._project(x)
        k = apply_rotary(self.k_norm(k), *rotary)
        if last is not None:
            q, gate = select_tokens(q, last), select_tokens(gate, last)
            rotary = select_tokens(rotary[0], last), select_tokens(rotary[1], last)
        q = apply_rotary(self.q_norm(q), *rotary)
        return (state.attend(self.index, q, k, v) * torch.sigmoid(gate)).flatten(2)

    def store(self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], state: Storing) -> None:
        """Keys and values of tokens, which attend to nothing; x and rotary as in `forward`."""
        _, _, k, v = self._project(x)
        state.store(self.index, apply_rotary(self.k_norm(k), *rotary), v)

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, gates, keys and values, each [batch, tokens, heads, head_dim]."""
        counts = (self.query_heads, self.query_heads, self.kv_heads, self.kv_heads)
        parts: tuple[torch.Tensor, ...] = self.in_proj_qgkv(x).unflatten(2, (-1, self.head_dim)).split(counts, dim=2)
        return parts
