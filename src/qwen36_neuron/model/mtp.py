"""The multi-token-prediction layer: drafts the token after next from a hidden state and the next token."""

from __future__ import annotations

import torch
from torch import nn

from ..config import LayerType, ModelConfig
from .attention import Attention
from .decoder_layer import DecoderLayer
from .layers import LayerFactory
from .norm import RMSNorm
from .state import StepState, Storing


class MtpLayer(nn.Module):
    """fc(norm(embedding of token p + 1) | norm(hidden state at p)), an attention layer; then `norm`, by who calls it.

    The normed result takes the place of the model's own hidden state at p + 1: the head makes token p + 2 of it, and
    with that token's embedding it goes into the layer again.

    Args:
        index: of its attention layer in the cache, behind the model's own.
    """

    def __init__(self, config: ModelConfig, layers: LayerFactory, index: int) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.norm_embedding = RMSNorm(hidden, eps)
        self.norm_hidden = RMSNorm(hidden, eps)
        self.fc = layers.joined(2 * hidden, hidden)
        self.layer = DecoderLayer(config, layers, index, LayerType.ATTENTION)
        self.norm = RMSNorm(hidden, eps)

    def forward(
        self,
        hidden: torch.Tensor,
        embedded: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        state: StepState,
        last: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run the layer over the tokens of each row, but for its last norm.

        Args:
            hidden: [batch, tokens, hidden] after the model's final norm, or after this layer's for drafts after the
                first.
            embedded: [batch, tokens, hidden], embeddings of the tokens that follow.
            rotary: (cos, sin) of the hidden states' positions.
            state: the memory of the rows; the layer's keys and values go to its own index.
            last: int [batch], places of the only tokens whose result is asked for.
        Returns:
            [batch, tokens, hidden], or [batch, 1, hidden] with `last`.
        """
        result: torch.Tensor = self.layer(self._joined(hidden, embedded), rotary, state, last)
        return result

    def store(
        self, hidden: torch.Tensor, embedded: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], state: Storing
    ) -> None:
        """The layer's keys and values alone, of tokens from which nothing is drafted; arguments as in `forward`."""
        mixer = self.layer.mixer
        assert isinstance(mixer, Attention)
        mixer.store(self.layer.input_norm(self._joined(hidden, embedded)), rotary, state)

    def _joined(self, hidden: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        joined: torch.Tensor = self.fc(torch.cat((self.norm_embedding(embedded), self.norm_hidden(hidden)), dim=-1))
        return joined
