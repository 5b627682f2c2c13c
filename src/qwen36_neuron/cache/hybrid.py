"""The buffers of the hybrid cache: paged KV, running-state lanes and checkpoint slots."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .spec import CacheSpec


@dataclass(frozen=True, slots=True)
class LayerStates:
    """States of one DeltaNet layer, by lane or by slot.

    Attributes:
        recurrent: fp32 [entries, value heads, dk, dv].
        window: [entries, kernel - 1, channels].
    """

    recurrent: torch.Tensor
    window: torch.Tensor

    @classmethod
    def empty(cls, spec: CacheSpec, entries: int) -> LayerStates:
        return cls(
            torch.zeros(entries, *spec.recurrent_shape, dtype=torch.float32),
            torch.zeros(entries, *spec.window_shape, dtype=spec.dtype),
        )


class HybridCache:
    """All the memory that sequences own, one buffer a layer.

    Attributes:
        kv: (keys, values) by attention layer index.
        lanes: running states by DeltaNet layer index; entry 0 is scratch for padded rows.
        slots: checkpoints by DeltaNet layer index; entry 0 is never used.
    """

    def __init__(self, spec: CacheSpec) -> None:
        self.spec = spec
        config = spec.config
        self.kv = {
            layer: (torch.zeros(spec.kv_shape, dtype=spec.dtype), torch.zeros(spec.kv_shape, dtype=spec.dtype))
            for layer in config.attention_layers
        }
        self.lanes = {layer: LayerStates.empty(spec, spec.num_lanes + 1) for layer in config.deltanet_layers}
        slots = spec.num_slots + 1 if spec.num_slots else 0
        self.slots = {layer: LayerStates.empty(spec, slots) for layer in config.deltanet_layers}

    def zero(self, lane: int) -> None:
        """Make a lane that of an empty sequence."""
        for states in self.lanes.values():
            states.recurrent[lane].zero_()
            states.window[lane].zero_()

    def restore(self, lane: int, slot: int) -> None:
        """Make a lane continue from a checkpoint."""
        for layer, states in self.lanes.items():
            states.recurrent[lane] = self.slots[layer].recurrent[slot]
            states.window[lane] = self.slots[layer].window[slot]

    def commit(self, lane: int, slot: int) -> None:
        """Keep a lane's state as a checkpoint."""
        for layer, states in self.lanes.items():
            self.slots[layer].recurrent[slot] = states.recurrent[lane]
            self.slots[layer].window[slot] = states.window[lane]
