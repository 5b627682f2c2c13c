"""The CPU runtime with fused operations: what lies between a block's projections is one call, or few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..cache import HybridCache, StateBank
from ..checkpoint.load import is_quantised
from ..config import BLOCK_SIZE, ModelConfig
from ..model import Qwen36Model, StepState
from ..model.attention import Attention
from ..model.deltanet import GatedDeltaNet
from ..model.mlp import set_activation
from ..model.norm import set_norm
from ..model.state import select_tokens
from ..ops.attention import PagedRow, attend
from ..ops.attention.numba import attention_prefill, store_keys
from ..ops.gated_delta_rule.numba import delta_net_prefill
from ..ops.numba.projections import FEW
from ..ops.numba.rows import gate_heads, norm_and_rotate, rms_norm, swiglu
from ..ops.numba.scalar import Array, array, f32, use_threads
from ..ops.numba.states import Entries, StateRows
from ..ops.numba.weights import DeltaNetWeights
from ..step import Row, RowResult
from .config import RuntimeConfig
from .cpu import SCRATCH, Call, CpuRuntime
from .cpu_layers import PlainLinear
from .cpu_state import source
from .fused_decode import AttentionStep, DecodeProgram, LayerProgram, block_tables
from .fused_draft import FusedDraftLayer
from .fused_verify import MOST, VerifyProgram
from .held import load_held

SHORT = 1024
"""Tokens up to which all of attention is one call; beyond, torch's is as fast or faster."""


class FusedRuntime(CpuRuntime):
    """fp32 alone. A model's outputs are those of the plain CPU runtime within fp32 rounding.

    Weights stay as they were loaded, [out, in], beside the panels that few rows read. Those of a quantised checkpoint
    are held in panels of its own codes alone, and written out part by part for prompts; so are a mixture's, in the
    numbers that they are stored in.
    """

    linear = PlainLinear

    def __init__(self, config: RuntimeConfig) -> None:
        super().__init__(config)
        set_norm(self.model, rms_norm)
        set_activation(self.model, swiglu)
        blocks = [block for block in self.model.modules() if isinstance(block, GatedDeltaNet)]
        self._weights = {block.index: _weights(block) for block in blocks}
        self._program = DecodeProgram(self.model, self.cache, self._weights)
        self._verifier = VerifyProgram(self._program, self.cache)
        if config.draft_layer:
            self._drafts = FusedDraftLayer(self.model, self.cache, config.max_model_len, self._program)

    def _load(self, described: ModelConfig) -> Qwen36Model:
        if described.moe is not None or is_quantised(self.config.model):
            return load_held(self.config.model, described, self.config.draft_layer, self._kv_scales(described))
        return super()._load(described)

    def warm_up(self) -> None:
        super().warm_up()
        both, one = torch.ones(1, 1, 4), torch.ones(1, 1, 1, 1)
        gate_heads(norm_and_rotate(both, torch.ones(2), 1.0, (one, one)).flatten(2), both)  # of long sequences alone
        if self._capacity.max_drafts:
            with torch.inference_mode():
                self._verifier.run([Row("warm-up", SCRATCH, [0], 0, [SCRATCH], drafts=(0,))], [0])
            self.cache.zero(SCRATCH)

    def _run(self, rows: Sequence[Row]) -> list[RowResult]:
        use_threads(torch.get_num_threads())  # said to each thread that calls
        return super()._run(rows)

    def _decode(self, rows: Sequence[Row]) -> torch.Tensor:
        hidden = self._program.run(rows)
        self._commit(rows)
        return hidden

    def _is_prompt(self, row: Row) -> bool:
        return super()._is_prompt(row) and len(row.tokens) > MOST

    def _calls(self, rows: Sequence[Row]) -> list[tuple[list[Row], Call]]:
        """All rows of few positions are one call, short prompts among them.

        Rows of one token are part of it only where drafts are verified: a decode step gives them the same bits whatever
        prompts are beside them.
        """
        verifies = any(self._verifies(row) for row in rows)
        few = [row for row in rows if self._is_few(row, 1 if verifies else 2)]
        rest = [row for row in rows if not self._is_few(row, 1 if verifies else 2)]
        calls: list[tuple[list[Row], Call]] = [(few, self._verify_few)] if few else []
        return [*calls, *super()._calls(rest)]

    @staticmethod
    def _is_few(row: Row, least: int) -> bool:
        return least <= len(row.tokens) + len(row.drafts) <= MOST

    def _verify_few(self, rows: Sequence[Row]) -> torch.Tensor:
        return self._verifier.run(rows, [self._checker.accepted(row) for row in rows])

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._program.logits(hidden) if len(hidden) <= FEW else super()._logits(hidden)

    def _prefill_state(self, rows: Sequence[Row], lengths: Sequence[int]) -> StepState:
        entry = self.cache.spec.slot_entry
        marks = [
            (index, commit.boundary - row.start, entry(commit.slot))
            for index, row in enumerate(rows)
            for commit in row.commits
        ]
        return FusedPrefill(
            cache=self.cache,
            weights=self._weights,
            layers=self._program.layers,
            lead=rows[0].start % BLOCK_SIZE,
            states=StateRows.of(
                [row.lane for row in rows],
                [source(row, self.cache.spec) for row in rows],
                lengths,
                [row.start == 0 for row in rows],
                marks,
            ),
            tables=block_tables(rows),
            starts=np.array([row.start for row in rows], np.int64),
            ends=np.array([row.end for row in rows], np.int64),
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


@dataclass(frozen=True, slots=True)
class FusedPrefill:
    """The `StepState` of rows of many tokens, padded on the right.

    Attributes:
        weights: small parameters by DeltaNet layer; layers: what few rows run, with all weights.
        lead: start % BLOCK_SIZE, the same for all rows.
        states: the rows as DeltaNet layers see them.
        tables: int32 [batch, n], the rows' blocks, 0 after a row's last.
        starts, ends: int64 [batch], tokens of each row before and after the step.
    """

    cache: HybridCache
    weights: dict[int, DeltaNetWeights]
    layers: Sequence[LayerProgram]
    lead: int
    states: StateRows
    tables: Array
    starts: Array
    ends: Array

    def delta_net(self, block: GatedDeltaNet, x: torch.Tensor) -> torch.Tensor:
        projected = self.layers[block.index].project(x)
        bank = _entries(self.cache.banks[block.index])
        return delta_net_prefill(projected, self.weights[block.index], bank, self.states, self.lead)

    def attention(
        self,
        block: Attention,
        x: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        last: torch.Tensor | None,
    ) -> torch.Tensor:
        """With `last`, queries and gates are projected for the last tokens alone."""
        layer, queries = self.layers[block.index], 2 * block.query_heads * block.head_dim
        assert isinstance(layer.mixer, AttentionStep)
        weight, pages = layer.in_proj, layer.mixer.pages
        norm = array(block.k_norm.weight), f32(block.k_norm.eps)
        kv = array(weight.product(x, queries))
        store_keys(kv, *norm, *_angles(rotary), self.tables, self.starts, self.ends, pages)

        counts = self.ends - self.starts
        if last is not None:
            x, rotary = select_tokens(x, last), (select_tokens(rotary[0], last), select_tokens(rotary[1], last))
            counts = np.ones_like(counts)
        qg = weight.product(x, 0, queries)
        if self.ends.max() > SHORT:
            return self._attend_far(block, qg, rotary, counts)
        norm, out = (array(block.q_norm.weight), f32(block.q_norm.eps)), torch.empty(*qg.shape[:2], qg.shape[2] // 2)
        rows = self.tables, self.ends, counts
        attention_prefill(array(qg), *norm, *_angles(rotary), *rows, pages, array(out))
        return out

    def _attend_far(
        self, block: Attention, qg: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], counts: Array
    ) -> torch.Tensor:
        """Attention of each row's last `counts` tokens by torch, between a fused norm and a fused gate."""
        q = block.scaled(norm_and_rotate(qg, block.q_norm.weight, block.q_norm.eps, rotary))
        out = torch.zeros_like(q)  # padding must stay finite: a NaN would pass through beta = 0
        for row, count in enumerate(counts.tolist()):
            where = PagedRow.of(self.tables[row].tolist(), int(self.starts[row]), int(self.ends[row]))
            out[row, :count] = attend(q[row, :count], self.cache.positions(block.index), where)
        return gate_heads(block.unscaled(out).flatten(2), qg)


def _entries(bank: StateBank) -> Entries:
    return Entries(array(bank.window), array(bank.recurrent))


def _angles(rotary: tuple[torch.Tensor, torch.Tensor]) -> tuple[Array, Array]:
    """cos and sin [batch, tokens, 1, dim / 2] without the axis of heads."""
    cos, sin = (array(table.flatten(1, 2)) for table in rotary)
    return cos, sin
