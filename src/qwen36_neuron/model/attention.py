"""Gated grouped-query attention with per-head query and key norms and partial rotary embedding."""

from __future__ import annotations

import torch
from torch import nn

from ..config import ModelConfig
from ..ops.attention import apply_rotary
from ..ops.fp8 import rounded
from .layers import LayerFactory
from .norm import RMSNorm
from .state import StateOperations, StepState, Storing, select_tokens


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v * sigmoid(gate), projected out.

    One projection gives a rank's queries, gates, keys and values in that order; the checkpoint's per-head
    interleaving of query and gate is undone by the loader.

    With FP8 keys and values (`add_kv_scales`), memory holds them over the scale of their head, rounded to FP8 before
    anything attends to them: whether a key is read in the step that made it or later, it is the same. The scales go on
    the queries and on the result, one multiplication each instead of one for every number that is read.

    Attributes:
        k_scale, v_scale: fp32 [kv_heads] with FP8 keys and values, else None.
    """

    k_scale: nn.Parameter | None
    v_scale: nn.Parameter | None

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
        self.register_parameter("k_scale", None)
        self.register_parameter("v_scale", None)

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

    def add_to(
        self,
        x: torch.Tensor,
        norm: RMSNorm,
        rotary: tuple[torch.Tensor, torch.Tensor],
        state: StepState,
        last: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x + the mixer of its norm: [batch, tokens, hidden], or [batch, 1, hidden] with `last`, see `forward`."""
        mixed = self(norm(x), rotary, state, last)
        return mixed + (x if last is None else select_tokens(x, last))

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
        found = self.unscaled(state.attend(self.index, self.scaled(q), *self.kept(k, v)))
        return (found * torch.sigmoid(gate)).flatten(2)

    def store(self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], state: Storing) -> None:
        """Keys and values of tokens, which attend to nothing; x and rotary as in `forward`."""
        _, _, k, v = self._project(x)
        state.store(self.index, *self.kept(apply_rotary(self.k_norm(k), *rotary), v))

    def kept(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [..., kv_heads, head_dim] as memory holds them, in their own dtype."""
        if self.k_scale is None or self.v_scale is None:
            return k, v
        return rounded(k, self.k_scale.reciprocal()[:, None]), rounded(v, self.v_scale.reciprocal()[:, None])

    def scaled(self, q: torch.Tensor) -> torch.Tensor:
        """Queries [..., query_heads, head_dim] for keys as memory holds them."""
        return q if self.k_scale is None else self._times(q, self.k_scale)

    def unscaled(self, found: torch.Tensor) -> torch.Tensor:
        """What was found [..., query_heads, head_dim] among values as memory holds them."""
        return found if self.v_scale is None else self._times(found, self.v_scale)

    def _times(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        spread = scale.repeat_interleave(self.query_heads // self.kv_heads)
        return (x.float() * spread[:, None]).to(x.dtype)

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, gates, keys and values, each [batch, tokens, heads, head_dim]."""
        counts = (self.query_heads, self.query_heads, self.kv_heads, self.kv_heads)
        parts: tuple[torch.Tensor, ...] = self.in_proj_qgkv(x).unflatten(2, (-1, self.head_dim)).split(counts, dim=2)
        return parts


SCALES = ("k_scale", "v_scale")
"""Parameters of `Attention` that there are with FP8 keys and values alone."""


def add_kv_scales(network: nn.Module) -> None:
    """Have every attention layer of a network, the draft layer's among them, keep its keys and values in FP8.

    The scales are 1 until they are loaded.
    """
    for block in network.modules():
        if isinstance(block, Attention):
            for name in SCALES:
                scale = torch.ones(block.kv_heads, dtype=torch.float32, device=block.k_norm.weight.device)
                setattr(block, name, nn.Parameter(scale, requires_grad=False))
