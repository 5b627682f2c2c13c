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


class HybridCache:
    """All the memory that sequences own, one buffer a layer.

    Attributes:
        kv: (keys, values) by attention layer index, each [blocks, BLOCK_SIZE, kv heads, head_dim].
        banks: states by DeltaNet layer index.
    """

    def __init__(self, spec: CacheSpec) -> None:
        self.spec = spec
        config = spec.config
        self.kv = {
            layer: (torch.zeros(spec.kv_shape, dtype=spec.dtype), torch.zeros(spec.kv_shape, dtype=spec.dtype))
            for layer in config.attention_layers
        }
        self.banks = {
            layer: StateBank(
                torch.zeros(spec.entries, *spec.recurrent_shape, dtype=torch.float32),
                torch.zeros(spec.entries, *spec.window_shape, dtype=spec.dtype),
            )
            for layer in config.deltanet_layers
        }

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
