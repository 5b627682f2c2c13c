"""The buffers of the hybrid cache, the same on CPU and on a device: a bank of states a layer, paged KV beside it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .spec import CacheSpec


@dataclass(frozen=True, slots=True)
class StateBank:
    """All states of one DeltaNet layer, by entry: scratch, lanes, checkpoint slots (see `CacheSpec`).

    Attributes:
        recurrent: fp32 [entries, value heads, dk, dv].
        window: [entries, kernel - 1, channels], the convolution's last inputs.
    """

    recurrent: torch.Tensor
    window: torch.Tensor

    def zero(self, entry: int) -> None:
        """Make an entry that of an empty sequence."""
        self.recurrent[entry].zero_()
        self.window[entry].zero_()

    def copy(self, source: int, target: int) -> None:
        """Make an entry that of another."""
        self.recurrent[target] = self.recurrent[source]
        self.window[target] = self.window[source]


@dataclass(frozen=True, slots=True)
class DraftFactors:
    """What a DeltaNet layer's state was not yet changed by: the factors of each lane's unconfirmed tokens, in order.

    Attributes:
        inputs: [1 + lanes, max drafts, channels], what goes into the convolution.
        k: [1 + lanes, max drafts, key heads, dk]; v: [1 + lanes, max drafts, value heads, dv], what comes out of it.
        g, beta: fp32 [1 + lanes, max drafts, value heads].
    """

    inputs: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor

    @classmethod
    def zeros(cls, spec: CacheSpec) -> DraftFactors:
        rows, config, rank = (1 + spec.num_lanes, spec.max_drafts), spec.config, spec.config.rank(spec.tp)
        gates = (*rows, rank.num_value_heads)
        return cls(
            torch.zeros(*rows, rank.conv_channels, dtype=spec.dtype),
            torch.zeros(*rows, rank.num_key_heads, config.key_head_dim, dtype=spec.dtype),
            torch.zeros(*gates, config.value_head_dim, dtype=spec.dtype),
            torch.zeros(*gates, dtype=torch.float32),
            torch.zeros(*gates, dtype=torch.float32),
        )


class HybridCache:
    """All the memory that sequences own, one buffer a layer.

    Attributes:
        kv: (keys, values) by attention layer index, each [blocks, BLOCK_SIZE, kv heads, head_dim], over the scale of
            their head where they are FP8 (`model.attention`). The draft layer's at a position are of the hidden state
            before it and of its token, so that a block's content depends on no later token; position 0 has none.
        banks: states by DeltaNet layer index.
        drafts: factors of unconfirmed tokens by DeltaNet layer index.
        last_hidden: [1 + slots, hidden] with a draft layer, the hidden state of the last token of each checkpoint.
    """

    def __init__(self, spec: CacheSpec) -> None:
        self.spec = spec
        config = spec.config
        shape, numbers = spec.kv_shape, spec.kv_numbers
        self.kv = {
            layer: (torch.zeros(shape, dtype=numbers), torch.zeros(shape, dtype=numbers)) for layer in spec.kv_layers
        }
        self.banks = {
            layer: StateBank(
                torch.zeros(spec.entries, *spec.recurrent_shape, dtype=torch.float32),
                torch.zeros(spec.entries, *spec.window_shape, dtype=spec.dtype),
            )
            for layer in config.deltanet_layers
        }
        self.drafts = {layer: DraftFactors.zeros(spec) for layer in config.deltanet_layers}
        kept = 1 + spec.num_slots if spec.draft_layer else 0
        self.last_hidden = torch.zeros(kept, config.hidden_size, dtype=spec.dtype)

    def positions(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of a layer's (keys, values) by position, [blocks * BLOCK_SIZE, kv heads, head_dim]."""
        keys, values = self.kv[layer]
        return keys.flatten(0, 1), values.flatten(0, 1)

    def zero(self, entry: int) -> None:
        """Make an entry that of an empty sequence, in all layers."""
        for bank in self.banks.values():
            bank.zero(entry)

    def copy(self, source: int, target: int) -> None:
        """Make an entry that of another, in all layers."""
        for bank in self.banks.values():
            bank.copy(source, target)
