"""The CPU runtime with fused operations: what lies between a block's projections is one call, or few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..config import BLOCK_SIZE
from ..model import StepState
from ..model.attention import Attention
from ..model.deltanet import GatedDeltaNet
from ..model.mlp import set_activation
from ..model.norm import set_norm
from ..model.state import select_tokens
from ..ops.fused_cpu.delta_net_prefill import Workspace, delta_net_prefill
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
        lanes, lead = lane_index([row.lane for row in rows]), rows[0].start % BLOCK_SIZE
        commits = [row.commits for row in rows]
        return FusedPrefill(self.cache, lanes, paged(rows), lengths, lead, commits, self._weights, self._projections)


def _weights(block: GatedDeltaNet) -> DeltaNetWeights:
    return DeltaNetWeights(
        key_heads=block.key_heads,
        taps=np.ascontiguousarray(array(block.conv_weight).T),
        rate=array(block.A),
        dt_bias=array(block.dt_bias),
        norm_weight=array(block.norm.weight),
        eps=f32(block.norm.eps),
    )


@dataclass(slots=True)
class FusedPrefill(CpuPrefill):
    """Rows of many tokens. Attention is the plain one between fused norms and gates.

    Attributes:
        weights: small parameters by DeltaNet layer; projections: all input weights of a mixer in one, by layer.
    """

    weights: dict[int, DeltaNetWeights]
    projections: Sequence[torch.Tensor]
    workspace: Workspace = field(default_factory=Workspace)

    def delta_net(self, block: GatedDeltaNet, x: torch.Tensor) -> torch.Tensor:
        projected = linear(x, self.projections[block.index])
        lanes = self.cache.lanes[block.index]
        window, state = lanes.window[self.lanes], lanes.recurrent[self.lanes]
        copies = self._state_copies(block.index)
        out = delta_net_prefill(
            projected,
            self.weights[block.index],
            window,
            state,
            self.lengths,
            self.lead,
            self.workspace,
            copies,
            fresh=all(row.start == 0 for row in self.rows),
        )
        if isinstance(self.lanes, torch.Tensor):  # the states were gathered, not used where they are
            lanes.recurrent[self.lanes] = state
        self._keep_windows(block.index, projected[..., : block.conv_channels], window)
        return out

    def _keep_windows(self, layer: int, x: torch.Tensor, window: torch.Tensor) -> None:
        """Leave each row's last inputs in its lane, and those before a checkpoint in its slot."""
        size = window.shape[1]

        def at(index: int, tokens: int) -> torch.Tensor:
            """The window after so many tokens of a row."""
            if tokens >= size:
                return x[index, tokens - size : tokens]
            return torch.cat((window[index, tokens:], x[index, :tokens]))

        for index, (row, commits) in enumerate(zip(self.rows, self.commits, strict=True)):
            for commit in commits:
                self.cache.slots[layer].window[commit.slot] = at(index, commit.boundary - row.start)
        self.cache.lanes[layer].window[self.lanes] = torch.stack([at(row, n) for row, n in enumerate(self.lengths)])

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
