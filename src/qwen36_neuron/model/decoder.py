"""The decoder: embedding, [3 DeltaNet + 1 attention] layers, final norm, output head."""

from __future__ import annotations

import torch
from torch import nn

from ..config import ModelConfig
from ..ops.attention import rotary_tables, rotary_turns
from .attention import SCALES, add_kv_scales
from .decoder_layer import DecoderLayer
from .layers import LayerFactory, SingleRank
from .mtp import MtpLayer
from .norm import RMSNorm
from .state import StepState, Storing


class Qwen36Model(nn.Module):
    """Qwen3.5/3.6 text model of one rank. Parameter names are those that `checkpoint.load` gives.

    Args:
        include_mtp: hold the multi-token-prediction layer as well; its attention layer comes behind all others.
    """

    def __init__(self, config: ModelConfig, layers: LayerFactory | None = None, include_mtp: bool = False) -> None:
        super().__init__()
        layers = layers or SingleRank()
        self.config = config
        self.embed_tokens = layers.embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layers, index, kind) for index, kind in enumerate(config.layer_types)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = layers.head(config.hidden_size, config.vocab_size)
        if include_mtp:
            self.mtp = MtpLayer(config, layers, config.num_layers)
        self.rotary_turns: nn.Parameter | None = None

    def hold_turns(self) -> None:
        """Take rotary angles without fp64, by a parameter: a graph's constants are weights of it."""
        self.rotary_turns = nn.Parameter(rotary_turns(self.config.rope), requires_grad=False)

    def _rotary(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        return rotary_tables(positions, self.config.rope, dtype, self.rotary_turns)

    @classmethod
    def from_weights(
        cls, config: ModelConfig, weights: dict[str, torch.Tensor], layers: LayerFactory | None = None
    ) -> Qwen36Model:
        """Build around given tensors, which are used as they are, not copied.

        With the draft layer if they have it, and with FP8 keys and values if they have scales of those.

        Raises:
            RuntimeError: a tensor is missing, unknown or of the wrong shape.
        """
        with torch.device("meta"):
            model = cls(config, layers, include_mtp=any(name.startswith("mtp.") for name in weights))
            if any(name.endswith(SCALES) for name in weights):
                add_kv_scales(model)
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
        result: torch.Tensor = self.norm(self.residual(tokens, positions, state, last))
        return result

    def residual(
        self, tokens: torch.Tensor, positions: torch.Tensor, state: StepState, last: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`forward` without the final norm, for a head that has it inside."""
        return self._last_layer(self.before_last_layer(tokens, positions, state), positions, state, last)

    def before_last_layer(self, tokens: torch.Tensor, positions: torch.Tensor, state: StepState) -> torch.Tensor:
        """What goes into the last layer, [batch, tokens, hidden]; arguments as those of `forward`."""
        x: torch.Tensor = self.embed_tokens(tokens)
        rotary = self._rotary(positions, x.dtype)
        for index in range(len(self.layers) - 1):
            x = self.layers[index](x, rotary, state)
        return x

    def last_layer(
        self, x: torch.Tensor, positions: torch.Tensor, state: StepState, last: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The rest of `forward`, of what `before_last_layer` gave."""
        result: torch.Tensor = self.norm(self._last_layer(x, positions, state, last))
        return result

    def _last_layer(
        self, x: torch.Tensor, positions: torch.Tensor, state: StepState, last: torch.Tensor | None
    ) -> torch.Tensor:
        result: torch.Tensor = self.layers[-1](x, self._rotary(positions, x.dtype), state, last)
        return result

    def draft(
        self,
        hidden: torch.Tensor,
        next_tokens: torch.Tensor,
        positions: torch.Tensor,
        state: StepState,
        last: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run the multi-token-prediction layer (see `MtpLayer`).

        Args:
            hidden: [batch, tokens, hidden], what `forward` or an earlier `draft` gave.
            next_tokens: int64 [batch, tokens], the tokens that follow those of `hidden`.
            positions: int [batch, tokens], of the hidden states.
        Returns:
            [batch, tokens, hidden], or [batch, 1, hidden] with `last`: `logits` makes drafts of it.
        """
        result: torch.Tensor = self.draft_norm(self.draft_residual(hidden, next_tokens, positions, state, last))
        return result

    @property
    def draft_norm(self) -> RMSNorm:
        """The multi-token-prediction layer's last norm."""
        norm: RMSNorm = self.mtp.norm
        return norm

    def draft_residual(
        self,
        hidden: torch.Tensor,
        next_tokens: torch.Tensor,
        positions: torch.Tensor,
        state: StepState,
        last: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`draft` without the layer's last norm, for a head that has it inside."""
        embedded = self.embed_tokens(next_tokens)
        rotary = self._rotary(positions, embedded.dtype)
        result: torch.Tensor = self.mtp(hidden, embedded, rotary, state, last)
        return result

    def store_for_drafts(
        self, hidden: torch.Tensor, next_tokens: torch.Tensor, positions: torch.Tensor, state: Storing
    ) -> None:
        """Keys and values of the multi-token-prediction layer, for drafts to come; arguments as those of `draft`."""
        embedded = self.embed_tokens(next_tokens)
        self.mtp.store(hidden, embedded, self._rotary(positions, embedded.dtype), state)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] after the final norm -> fp32 [..., vocab]."""
        return self.lm_head(hidden).float()
