"""The memory of a rank as the graphs hold it: parameters that a step takes and gives back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..cache import CacheSpec
from ..config import BLOCK_SIZE


@dataclass(slots=True)
class StepMemory:
    """The memory during one call, by layer. A block replaces an entry by what its operation gives back.

    That is a new tensor with plain operations, and the same one, written in place, with NKI kernels.

    Attributes:
        kv: (keys, values) of attention layers, each [blocks, BLOCK_SIZE, kv_heads, head_dim].
        recurrent: of DeltaNet layers, [entries, value_heads, dk, dv] fp32.
        window: of DeltaNet layers, [entries, kernel - 1, channels].
    """

    kv: dict[int, tuple[torch.Tensor, torch.Tensor]]
    recurrent: dict[int, torch.Tensor]
    window: dict[int, torch.Tensor]

    def outputs(self) -> list[torch.Tensor]:
        """Everything, in the order of `HybridCacheManager.states`."""
        return [t for pair in self.kv.values() for t in pair] + [*self.recurrent.values(), *self.window.values()]


class HybridCacheManager(nn.Module):
    """Paged KV for attention layers; for DeltaNet layers one bank of states: scratch, lanes, checkpoint slots.

    NxDI reads `past_key_values` and nothing else, so only keys and values are there, in pairs of one type and size, as
    its combined allocation wants them. Lanes and slots share a bank so that a row restores a checkpoint by reading
    another entry, and leaves its state and its checkpoints by one indexed copy.
    """

    def __init__(self, spec: CacheSpec) -> None:
        super().__init__()
        self.spec = spec
        config = spec.config
        _, heads, dim = spec.kv_shape
        kv = (spec.num_blocks, BLOCK_SIZE, heads, dim)
        entries = 1 + spec.num_lanes + spec.num_slots

        def bank(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> nn.ParameterList:
            return nn.ParameterList(
                nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=False) for _ in range(count)
            )

        self.past_key_values = bank(2 * len(config.attention_layers), kv, spec.dtype)
        layers = len(config.deltanet_layers)
        self.recurrent = bank(layers, (entries, *spec.recurrent_shape), torch.float32)
        self.window = bank(layers, (entries, *spec.window_shape), spec.dtype)

    def states(self) -> Iterator[nn.Parameter]:
        """Every state, in the order in which a graph gives them back: KV first, as NxDI expects."""
        yield from self.past_key_values
        yield from self.recurrent
        yield from self.window

    def open(self) -> StepMemory:
        """The memory at the start of a call."""
        config = self.spec.config
        pairs = zip(self.past_key_values[::2], self.past_key_values[1::2], strict=True)
        return StepMemory(
            kv=dict(zip(config.attention_layers, pairs, strict=True)),
            recurrent=dict(zip(config.deltanet_layers, self.recurrent, strict=True)),
            window=dict(zip(config.deltanet_layers, self.window, strict=True)),
        )
