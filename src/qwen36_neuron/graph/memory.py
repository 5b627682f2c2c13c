"""The hybrid cache as graphs hold it: tensors that a step takes and gives back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..cache import CacheSpec, HybridCache


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

    @classmethod
    def of(cls, cache: HybridCache) -> StepMemory:
        """The cache's own tensors."""
        return cls(
            kv=dict(cache.kv),
            recurrent={layer: bank.recurrent for layer, bank in cache.banks.items()},
            window={layer: bank.window for layer, bank in cache.banks.items()},
        )

    def outputs(self) -> list[torch.Tensor]:
        """Everything, in the order of `GraphCache.states`."""
        return [t for pair in self.kv.values() for t in pair] + [*self.recurrent.values(), *self.window.values()]


class GraphCache(nn.Module):
    """A `HybridCache` whose tensors are parameters, so that a traced module's states are found by name.

    NxDI reads `past_key_values` and nothing else, so only keys and values are there, in pairs of one type and size, as
    its combined allocation wants them.
    """

    def __init__(self, spec: CacheSpec) -> None:
        super().__init__()
        self.spec = spec
        memory = StepMemory.of(HybridCache(spec))
        self.past_key_values = _parameters([t for pair in memory.kv.values() for t in pair])
        self.recurrent = _parameters(list(memory.recurrent.values()))
        self.window = _parameters(list(memory.window.values()))

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


def _parameters(tensors: list[torch.Tensor]) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(tensor, requires_grad=False) for tensor in tensors)
