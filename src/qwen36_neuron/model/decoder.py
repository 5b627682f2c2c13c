"""The decoder: embedding, [3 DeltaNet + 1 attention] layers, final norm, output head."""

from __future__ import annotations

import torch
from torch import nn

from ..config import LayerType, ModelConfig
from ..ops.rope import rotary_tables
from .attention import Attention
from .deltanet import GatedDeltaNet
from .layers import LayerFactory, SingleRank
from .mlp import MLP
from .norm import RMSNorm
from .state import StepState, select_tokens


class DecoderLayer(nn.Module):
    """h = x + mixer(norm(x)); y = h + mlp(norm(h))."""

    def __init__(self, config: ModelConfig, layers: LayerFactory, index: int, kind: LayerType) -> None:
        super().__init__()
        self.input_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mixer: Attention | GatedDeltaNet
        if kind is LayerType.ATTENTION:
            self.mixer = Attention(config, layers, index)
        else:
            self.mixer = GatedDeltaNet(config, layers, index)
        self.mlp = MLP(config, layers)

    def forward(
        self,
        x: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        state: StepState,
        last: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[batch, tokens, hidden] in and out; with `last`, see `Qwen36Model.forward`, [batch, 1, hidden] out."""
        normed = self.input_norm(x)
        if isinstance(self.mixer, Attention):
            mixed = self.mixer(normed, rotary, state, last)
        else:
            mixed = self.mixer(normed, state)
            mixed = mixed if last is None else select_tokens(mixed, last)
        x = mixed + (x if last is None else select_tokens(x, last))
        return x + self.mlp(self.post_norm(x))


class Qwen36Model(nn.Module):
    """Qwen3.5/3.6 text model of one rank. Parameter names are those that `checkpoint.load` gives."""

    def __init__(self, config: ModelConfig, layers: LayerFactory | None = None) -> None:
        super().__init__()
        layers = layers or SingleRank()
        self.config = config
        self.embed_tokens = layers.embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layers, index, kind) for index, kind in enumerate(config.layer_types)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = layers.head(config.hidden_size, config.vocab_size)

    @classmethod
    def from_weights(
        cls, config: ModelConfig, weights: dict[str, torch.Tensor], layers: LayerFactory | None = None
    ) -> Qwen36Model:
        """Build around given tensors, which are used as they are, not copied.

        Raises:
            RuntimeError: a tensor is missing, unknown or of the wrong shape.
        """
        with torch.device("meta"):
            model = cls(config, layers)
        model.load_state_dict(weights, strict=True, assign=True)
        return model.requires_grad_(False).eval()

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, state: StepState, last: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the layers.

        Args:
            tokens: int64 [batch, tokens].
            positions: int [batch, tokens], or [3, batch, tokens] for (time, height, width).
            state: the memory of the rows.
            last: int [batch], place of each row's last token, where nothing is asked of the others. Of the last layer
                they then take their keys and values alone: no attention, which is most of a long prompt's last layer,
                no feed-forward block.
        Returns:
            [batch, tokens, hidden] after the final norm, or [batch, 1, hidden] with `last`.
        """
        x = self.embed_tokens(tokens)
        rotary = rotary_tables(positions, self.config.rope, x.dtype)
        for index, layer in enumerate(self.layers):
            x = layer(x, rotary, state, last if index == len(self.layers) - 1 else None)
        return self.norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] after the final norm -> fp32 [..., vocab]."""
        return self.lm_head(hidden).float()
