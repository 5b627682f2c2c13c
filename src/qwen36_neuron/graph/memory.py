"""The hybrid cache as graphs hold it: tensors that a step takes and gives back."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from ..cache import CacheSpec, HybridCache
from ..ops.fp8 import replace_rows


@dataclass(slots=True)
class StepMemory:
    """The memory during one call, by layer. A block replaces an entry by what its operation gives back.

    That is a new tensor with plain operations, and the same one, written in place, with NKI kernels.

    Attributes:
        kv: (keys, values) of attention layers, each [blocks, BLOCK_SIZE, kv_heads, head_dim].
        recurrent: of DeltaNet layers, [entries, value_heads, dk, dv] fp32.
        window: of DeltaNet layers, [entries, kernel - 1, channels].
        inputs, factors: of DeltaNet layers, what is pending of each lane's drafts (`CacheSpec.pending_shapes`); none
            without drafts.
        hidden, beyond: of the draft layer, hidden states after the final norm: of the last token that each entry holds,
            and of each lane's drafts (`CacheSpec.hidden_shapes`); none without that layer.
    """

    kv: dict[int, tuple[torch.Tensor, torch.Tensor]]
    recurrent: dict[int, torch.Tensor]
    window: dict[int, torch.Tensor]
    inputs: dict[int, torch.Tensor] = field(default_factory=dict)
    factors: dict[int, torch.Tensor] = field(default_factory=dict)
    hidden: dict[int, torch.Tensor] = field(default_factory=dict)
    beyond: dict[int, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, cache: HybridCache, drafts: int = 0) -> StepMemory:
        """The cache's own tensors, and room for so many pending drafts a lane."""
        spec = replace(cache.spec, max_drafts=drafts)
        inputs, factors = spec.pending_shapes
        hidden, beyond = spec.hidden_shapes
        layers = spec.config.deltanet_layers if spec.max_drafts else ()
        return cls(
            kv=dict(cache.kv),
            recurrent={layer: bank.recurrent for layer, bank in cache.banks.items()},
            window={layer: bank.window for layer, bank in cache.banks.items()},
            inputs={layer: torch.zeros(inputs, dtype=spec.dtype) for layer in layers},
            factors={layer: torch.zeros(factors, dtype=torch.float32) for layer in layers},
            hidden={layer: torch.zeros(hidden, dtype=spec.dtype) for layer in spec.draft_layers},
            beyond={layer: torch.zeros(beyond, dtype=spec.dtype) for layer in spec.draft_layers},
        )

    def keep_pending(self) -> None:
        """Leave what is pending as it is, in a graph that verifies nothing."""
        for pending in (self.inputs, self.factors, self.beyond):
            _keep(pending)

    def keep_all_but(self, layers: Collection[int]) -> None:
        """Leave everything as it is, in a graph that changes the keys and values of these layers alone."""
        for bank in (self.recurrent, self.window, self.inputs, self.factors, self.hidden, self.beyond):
            _keep(bank)
        for layer, (keys, values) in self.kv.items():
            if layer not in layers:
                self.kv[layer] = kept(keys), kept(values)

    def outputs(self) -> list[torch.Tensor]:
        """Everything, in the order of `GraphCache.states`."""
        by_layer = (self.recurrent, self.window, self.inputs, self.factors, self.hidden, self.beyond)
        return [t for pair in self.kv.values() for t in pair] + [t for each in by_layer for t in each.values()]


def kept(state: torch.Tensor) -> torch.Tensor:
    """A state as it is, for a graph that does not change it.

    Every state is an output of every graph, and an output must be computed: a row of scratch is written with its own
    value.
    """
    rows = state.view(-1, state.shape[-1])
    scratch = torch.zeros(1, dtype=torch.int64, device=state.device)
    return replace_rows(rows, scratch, rows[:1]).view(state.shape)


def _keep(bank: dict[int, torch.Tensor]) -> None:
    for layer, state in bank.items():
        bank[layer] = kept(state)


class GraphCache(nn.Module):
    """A `HybridCache` whose tensors are parameters, so that a traced module's states are found by name.

    NxDI reads `past_key_values` and nothing else, so only keys and values are there, in pairs of one type and size, as
    its combined allocation wants them.
    """

    def __init__(self, spec: CacheSpec) -> None:
        super().__init__()
        self.spec = spec
        memory = StepMemory.of(HybridCache(replace(spec, max_drafts=0)), spec.max_drafts)
        self.past_key_values = _parameters([t for pair in memory.kv.values() for t in pair])
        self.recurrent = _parameters(list(memory.recurrent.values()))
        self.window = _parameters(list(memory.window.values()))
        self.inputs = _parameters(list(memory.inputs.values()))
        self.factors = _parameters(list(memory.factors.values()))
        self.hidden = _parameters(list(memory.hidden.values()))
        self.beyond = _parameters(list(memory.beyond.values()))

    def states(self) -> Iterator[nn.Parameter]:
        """Every state, in the order in which a graph gives them back: KV first, as NxDI expects."""
        yield from self.past_key_values
        yield from self.recurrent
        yield from self.window
        yield from self.inputs
        yield from self.factors
        yield from self.hidden
        yield from self.beyond

    def open(self) -> StepMemory:
        """The memory at the start of a call."""
        config = self.spec.config
        drafting = config.deltanet_layers if self.spec.max_drafts else ()
        pairs = zip(self.past_key_values[::2], self.past_key_values[1::2], strict=True)
        return StepMemory(
            kv=dict(zip(self.spec.kv_layers, pairs, strict=True)),
            recurrent=dict(zip(config.deltanet_layers, self.recurrent, strict=True)),
            window=dict(zip(config.deltanet_layers, self.window, strict=True)),
            inputs=dict(zip(drafting, self.inputs, strict=True)),
            factors=dict(zip(drafting, self.factors, strict=True)),
            hidden=dict(zip(self.spec.draft_layers, self.hidden, strict=True)),
            beyond=dict(zip(self.spec.draft_layers, self.beyond, strict=True)),
        )


def _parameters(tensors: list[torch.Tensor]) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(tensor, requires_grad=False) for tensor in tensors)
