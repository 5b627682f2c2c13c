"""Tensor parallelism with all ranks in one process: the partial results added up must equal one rank's.

Each rank is a thread; a reduction is a rendezvous that adds the parts in rank order. Tolerance: 2e-6 of the largest
logit, because splitting a sum over ranks only changes its rounding, and 5e-6 of a mixture's, whose routers are steep.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qwen36_neuron.cache import CacheSpec, HybridCache
from qwen36_neuron.checkpoint.load import load_weights
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.model import Qwen36Model
from qwen36_neuron.model.layers import Embedding, Experts, Linear
from qwen36_neuron.ops.attention import PagedRow
from qwen36_neuron.runtime.cpu_state import CpuDecode, CpuPrefill, StateEntries
from qwen36_neuron.step import Row

from .oracle import Shape, build

SHAPE = Shape("tensor-parallel", hidden=256, query_heads=4, kv_heads=2, key_heads=4, value_heads=12)
MIXTURE = replace(SHAPE, name="tensor-parallel-mixture", experts=8)
CONFIG_TOKENS = 150

Reduce = Callable[[list[torch.Tensor]], torch.Tensor]


class Ranks:
    """Rendezvous of `count` threads that exchange one tensor each."""

    def __init__(self, count: int) -> None:
        self.parts: list[torch.Tensor] = [torch.empty(0)] * count
        self.barrier = threading.Barrier(count, timeout=60)

    def exchange(self, rank: int, part: torch.Tensor, combine: Reduce) -> torch.Tensor:
        self.parts[rank] = part
        self.barrier.wait()
        whole = combine(list(self.parts))
        self.barrier.wait()
        return whole


def add(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(parts).sum(0)


class Reduced(nn.Module):
    """A layer whose ranks' results are combined; its parameters keep the layer's names."""

    def __init__(self, layer: nn.Module, ranks: Ranks, rank: int, combine: Reduce) -> None:
        super().__init__()
        self.weight = layer.weight
        self.layer, self.ranks, self.rank, self.combine = [layer], ranks, rank, combine

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.layer[0].weight = self.weight
        return self.ranks.exchange(self.rank, self.layer[0](x), self.combine)


class ShardedEmbedding(Embedding):
    """The rank's rows of the vocabulary; other tokens give zero."""

    def __init__(self, vocab_size: int, hidden_size: int, first: int) -> None:
        super().__init__(vocab_size, hidden_size)
        self.first = first

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        local = tokens - self.first
        mine = (local >= 0) & (local < self.weight.shape[0])
        return F.embedding(local.clamp(0, self.weight.shape[0] - 1), self.weight) * mine.unsqueeze(-1)


class RankLayers:
    """The layers of one rank."""

    def __init__(self, tp: int, rank: int, ranks: Ranks) -> None:
        self.tp, self.rank, self.ranks = tp, rank, ranks

    def column(self, in_features: int, out_features: int) -> nn.Module:
        return Linear(in_features, out_features // self.tp)

    def row(self, in_features: int, out_features: int, summed: bool = True) -> nn.Module:
        layer = Linear(in_features // self.tp, out_features)
        return Reduced(layer, self.ranks, self.rank, add) if summed else layer

    def total(self, partial: torch.Tensor) -> torch.Tensor:
        return self.ranks.exchange(self.rank, partial, add)

    def joined(self, in_features: int, out_features: int) -> nn.Module:
        layer = Linear(in_features, out_features // self.tp)
        return Reduced(layer, self.ranks, self.rank, lambda parts: torch.cat(parts, dim=-1))

    def experts(self, count: int, hidden_size: int, intermediate_size: int) -> nn.Module:
        return Experts(count, hidden_size, intermediate_size // self.tp)

    def embedding(self, vocab_size: int, hidden_size: int) -> nn.Module:
        share = vocab_size // self.tp
        return Reduced(ShardedEmbedding(share, hidden_size, self.rank * share), self.ranks, self.rank, add)

    def head(self, hidden_size: int, vocab_size: int) -> nn.Module:
        return self.joined(hidden_size, vocab_size)


def logits_of(folder: Path, config: ModelConfig, tp: int) -> list[torch.Tensor]:
    """Every rank's logits of a cut prefill and three decode steps."""
    ranks = Ranks(tp)
    tokens = torch.randint(0, config.vocab_size, (1, CONFIG_TOKENS + 3), generator=torch.Generator().manual_seed(5))

    def one_rank(rank: int) -> torch.Tensor:
        weights = load_weights(folder, config, tp=tp, rank=rank)
        model = Qwen36Model.from_weights(config, weights, RankLayers(tp, rank, ranks))
        cache = HybridCache(CacheSpec(config, 5, 1, 0, torch.float32, tp))
        parts = []
        start = 0
        with torch.inference_mode():
            for length in (90, 60, 1, 1, 1):
                rows = [PagedRow.of((1, 2, 3, 4), start, start + length)]
                entries = StateEntries.of([Row("r", 1, [0] * length, start, [1, 2, 3, 4])], cache.spec)
                state = (
                    CpuDecode(cache, entries, rows, torch.tensor([64 + start]))
                    if length == 1
                    else CpuPrefill(cache, entries, rows, [length], start % 64, [[]])
                )
                positions = torch.arange(start, start + length).unsqueeze(0)
                hidden = model(tokens[:, start : start + length], positions, state)
                parts.append(model.logits(hidden)[0])
                start += length
        return torch.cat(parts)

    with ThreadPoolExecutor(tp) as pool:
        return list(pool.map(one_rank, range(tp)))


@pytest.fixture(scope="module", params=[SHAPE, MIXTURE], ids=lambda shape: shape.name)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensor-parallel")
    build(folder, request.param)
    return folder


@pytest.mark.parametrize("tp", [2, 4])
def test_ranks_added_up_equal_one_rank(checkpoint: Path, tp: int) -> None:
    """At 4 ranks the two key/value heads are replicated, two ranks each."""
    config = ModelConfig.from_pretrained(checkpoint)
    assert config.rank(4).kv_replicas == 2
    whole = logits_of(checkpoint, config, 1)[0]
    split = logits_of(checkpoint, config, tp)
    for rank in split:
        assert torch.equal(rank, split[0]), "ranks disagree"
    assert (split[0] - whole).abs().max() <= (5e-6 if config.moe else 2e-6) * whole.abs().max()
    assert not torch.equal(split[0], whole), "the ranks did not split anything"
