"""The time of the gated delta rule over a prompt, for this project's kernel and for the published baseline's."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Protocol, Self

import torch

from nki_kernels.interpreter.cost_table import Costs
from nki_kernels.interpreter.price_list import LEVELS, Level, PriceList

from ..config import BLOCK_SIZE, ModelConfig, RankShape
from . import price_record

TILE = 128
"""Tokens that both kernels solve at once."""


class DeltaRuleCost(Protocol):
    """Prices one layer of one rank."""

    @property
    def name(self) -> str:
        """For reports."""
        ...

    def seconds(self, model: ModelConfig, rank: RankShape, tokens: int) -> float:
        """For `tokens` tokens of one sequence."""
        ...

    def bound(self, model: ModelConfig, rank: RankShape) -> str:
        """What decides that."""
        ...

    def at(self, level: Level) -> DeltaRuleCost:
        """The same with the kernels' prices at their cheapest, centre or dearest."""
        ...


@dataclass(frozen=True, slots=True)
class Prefill:
    """This project's fused prefill kernel, priced on the interpreter: instruction by instruction, on two cores.

    As a graph calls it: a checkpoint may follow any chunk, and none does.
    """

    level: Level = "centre"
    name: str = "gated_delta_rule_prefill"
    sizes: tuple[int, int] = (256, 1024)

    def at(self, level: Level) -> Self:
        return replace(self, level=level)

    def seconds(self, model: ModelConfig, rank: RankShape, tokens: int) -> float:
        (few, first), (many, second) = ((size, self._price(model, rank, size)[0]) for size in self.sizes)
        return max(first, first + (second - first) * (tokens - few) / (many - few))

    def bound(self, model: ModelConfig, rank: RankShape) -> str:
        return self._price(model, rank, self.sizes[-1])[1]

    def _price(self, model: ModelConfig, rank: RankShape, tokens: int) -> tuple[float, str]:
        times, bound = _price(tokens, rank.num_key_heads, rank.num_value_heads, model.key_head_dim)
        return times[LEVELS.index(self.level)], bound


@cache
def _price(tokens: int, key_heads: int, heads: int, dim: int) -> tuple[tuple[float, float, float], str]:
    """Seconds at each level of the price list, and the binding engine, of one launch on both cores of a rank.

    As recorded, or priced now.
    """
    launch = "prefill_in_a_graph", (tokens, key_heads, heads, dim), ("gated_delta_rule_prefill",)
    recorded = price_record.read(*launch)
    if recorded is not None:
        return recorded
    from nki_kernels.gated_delta_rule_prefill import gated_delta_rule_prefill
    from nki_kernels.interpreter import profile

    random = torch.Generator().manual_seed(0)
    q, k = (torch.randn(tokens, key_heads, dim, generator=random).bfloat16() for _ in "qk")
    v = torch.randn(tokens, heads, dim, generator=random).bfloat16()
    g, beta = -torch.rand(tokens, heads, generator=random), torch.rand(tokens, heads, generator=random)
    state, valid = torch.zeros(heads, dim, dim), torch.tensor([[0, tokens]], dtype=torch.int32)
    chunks = tokens // BLOCK_SIZE
    slots = torch.tensor([[1] * chunks + [0]], dtype=torch.int32)
    _, report = profile(
        gated_delta_rule_prefill[2],
        *(q, k, v, g, beta, state, valid, torch.zeros(1, heads, dim, dim), slots),
        boundaries=tuple(range(1, chunks + 1)),
    )
    low, high = report.range_us["time_us"]
    found = (low * 1e-6, report.time_us * 1e-6, high * 1e-6), f"kernel: {report.binds}"
    price_record.add(*launch, found)
    return found


@dataclass(frozen=True, slots=True)
class RowByRow:
    """The published baseline's solve: a tile's 128 rows one after the other, each by whole-tile instructions.

    Read from its public source (27B, one 128-token tile and one head a launch, so one of a rank's two cores): for each
    row a 128 x 128 fp32 product, two copies of a tile, two additions, a product with a mask and one with a column, and
    a copy of that column, nearly all waiting for the one before.
    """

    name: str = "row by row"
    costs: Costs = field(default_factory=Costs)

    def at(self, level: Level) -> Self:
        return replace(self, costs=PriceList().costs(level))

    def row_seconds(self) -> float:
        """One row: seven instructions of VectorE and one of TensorE, in a chain."""
        costs = self.costs
        from_psum, two, one = costs.vector_psum, costs.vector_two_input, costs.vector_copy_fp32
        # Copy, addition, mask, column product, addition, copy: each waits until the one before is ready. The copy of a
        # column follows the mask and is ready after it by what issuing it takes.
        vector = TILE * (from_psum + two + two + one + two + one) / costs.vector_ghz
        vector += 6 * costs.vector_ready_ns + costs.vector_issue_ns
        tensor = TILE * costs.tensor_fp32_passes / costs.tensor_ghz * costs.tensor_throttle
        tensor = costs.tensor_ready_ns + costs.tensor_fp32_ready_factor * tensor
        return (vector + tensor + 2 * costs.semaphore_ns) * 1e-9

    def seconds(self, model: ModelConfig, rank: RankShape, tokens: int) -> float:
        return -(-tokens // TILE) * rank.num_value_heads * TILE * self.row_seconds()

    def bound(self, model: ModelConfig, rank: RankShape) -> str:
        return "kernel: vector"
