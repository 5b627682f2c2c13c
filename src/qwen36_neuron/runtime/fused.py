"""The CPU runtime with fused operations: what lies between a block's projections is one call, or few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..cache.hybrid import LayerStates
from ..config import BLOCK_SIZE
from ..model import StepState
from ..model.attention import Attention
from ..model.deltanet import GatedDeltaNet
from ..model.mlp import set_activation
from ..model.norm import set_norm
from ..model.state import select_tokens
from ..ops.fused_cpu.delta_net_prefill import Entries, delta_net_prefill
from ..ops.fused_cpu.delta_net_prefill import Rows as DeltaNetRows
from ..ops.fused_cpu.rows import gate_heads, norm_and_rotate, rms_norm, swiglu
from ..ops.fused_cpu.scalar import array, f32, use_threads
from ..ops.fused_cpu.weights import DeltaNetWeights
from .config import RuntimeConfig
from .cpu import CpuRuntime, paged
from .cpu_layers import PlainLinear, linear
from .cpu_state import CpuPrefill, lane_index
from .fused_decode import DecodeProgram
from .step import Row, RowResult


class FusedRuntime(CpuRuntime):
    """fp32 alone. A model's outputs are those of the plain CPU runtime within fp32 rounding.

    Weights stay as they were loaded, [out, in]: fused projections read them so, and prefill hardly minds.
    """

    linear = PlainLinear

    def __init__(self, config: RuntimeConfig) -> None:
        super().__init__(config)
        set_norm(self.model, rms_norm)
        set_activation(self.model, swiglu)
        blocks = [block for block in self.model.modules() if isinstance(block, GatedDeltaNet)]
        self._weights = {block.index: _weights(block) for block in blocks}
        self._program = DecodeProgram(self.model, self.cache, self._weights)
        self._projections = [layer.in_proj.tensor for layer in self._program.layers]

    def _run(self, rows: Sequence[Row]) -> list[RowResult]:
        use_threads(torch.get_num_threads())  # said to each thread that calls
        return super()._run(rows)

    def _decode(self, rows: Sequence[Row]) -> torch.Tensor:
        return self._program.run(rows)

    def _prefill_state(self, rows: Sequence[Row], lengths: Sequence[int]) -> StepState:
        marks = [
            (index, commit.boundary - row.start, commit.slot)
            for index, row in enumerate(rows)
            for commit in row.commits
        ]
        return FusedPrefill(
            cache=self.cache,
            lanes=lane_index([row.lane for row in rows]),
            rows=paged(rows),
            lengths=lengths,
            lead=rows[0].start % BLOCK_SIZE,
            commits=[row.commits for row in rows],
            weights=self._weights,
            projections=self._projections,
            where=DeltaNetRows.of([row.lane for row in rows], lengths, [row.start == 0 for row in rows], marks),
        )


def _weights(block: GatedDeltaNet) -> DeltaNetWeights:
    return DeltaNetWeights(
        key_heads=block.key_heads,
        taps=np.ascontiguousarray(array(block.conv_weight).T),
        rate=array(block.A),
        dt_bias=array(block.dt_bias),
        norm_weight=array(block.norm.weight),
        eps=f32(block.norm.eps),
    )


def _entries(states: LayerStates) -> Entries:
    return Entries(array(states.window), array(states.recurrent))


@dataclass(slots=True)
class FusedPrefill(CpuPrefill):
    """Rows of many tokens. Attention is the plain one between fused norms and gates.

    Attributes:
        weights: small parameters by DeltaNet layer; projections: all input weights of a mixer in one, by layer.
        where: the rows as DeltaNet layers see them.
    """

    weights: dict[int, DeltaNetWeights]
    projections: Sequence[torch.Tensor]
    where: DeltaNetRows

    def delta_net(self, block: GatedDeltaNet, x: torch.Tensor) -> torch.Tensor:
        projected = linear(x, self.projections[block.index])
        lanes, slots = (_entries(states[block.index]) for states in (self.cache.lanes, self.cache.slots))
        return delta_net_prefill(projected, self.weights[block.index], lanes, slots, self.where, self.lead)

    def attention(
        self,
        block: Attention,
        x: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        last: torch.Tensor | None,
    ) -> torch.Tensor:
        """With `last`, queries and gates are projected for the last tokens alone."""
        sizes = [2 * heads * block.head_dim for heads in (block.query_heads, block.kv_heads)]
        weight = self.projections[block.index].split(sizes)
        kv = linear(x, weight[1])
        k = norm_and_rotate(kv, block.k_norm.weight, block.k_norm.eps, rotary)
        if last is not None:
            x, rotary = select_tokens(x, last), (select_tokens(rotary[0], last), select_tokens(rotary[1], last))
        qg = linear(x, weight[0])
        q = norm_and_rotate(qg, block.q_norm.weight, block.q_norm.eps, rotary)
        out = self.attend(block.index, q, k, kv[..., sizes[1] // 2 :].view(k.shape))
        return gate_heads(out.flatten(2), qg)
