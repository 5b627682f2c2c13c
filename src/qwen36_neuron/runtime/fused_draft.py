"""The multi-token-prediction layer on CPU as fused calls: one makes all drafts of a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..cache import HybridCache
from ..config import BLOCK_SIZE
from ..model import Qwen36Model
from ..model.mtp import MtpLayer
from ..ops.mtp.numba import DenseWeights, DraftWeights, Owed, make_drafts, write_entries
from ..ops.numba.scalar import Array, array
from ..step import DraftRequest
from .cpu_draft import CpuDraftLayer
from .draft_lanes import Lane
from .fused_blocks import DenseBlock
from .fused_decode import AttentionStep, DecodeProgram, LayerProgram, norm_of, weight_of
from .fused_verify import MOST
from .rotary import rotary_at


class FusedDraftLayer(CpuDraftLayer):
    """Its results are those of `CpuDraftLayer` within fp32 rounding."""

    def __init__(self, model: Qwen36Model, cache: HybridCache, max_model_len: int, program: DecodeProgram) -> None:
        super().__init__(model, cache, max_model_len)
        mtp = model.mtp
        assert isinstance(mtp, MtpLayer)
        layer = LayerProgram.of(mtp.layer, cache, {})
        assert isinstance(layer.mixer, AttentionStep)
        block = layer.block
        self._rope = model.config.rope
        first = layer.in_proj.outputs - 2 * layer.mixer.pages.keys[0].size
        self._for_keys = layer.in_proj.packed.rows(first)
        self._weights = DraftWeights(
            embedding=program.embedding,
            norm_embedding=norm_of(mtp.norm_embedding),
            norm_hidden=norm_of(mtp.norm_hidden),
            fc=weight_of(mtp.fc).packed,
            input_norm=layer.input_norm,
            in_proj=layer.in_proj.packed,
            query_norm=layer.mixer.query,
            key_norm=layer.mixer.key,
            pages=layer.mixer.pages,
            out_proj=layer.out_proj.packed,
            post_norm=layer.post_norm,
            block=(
                DenseWeights(block.gate_up.packed, block.down.packed)
                if isinstance(block, DenseBlock)
                else block.mixture
            ),
            norm=norm_of(mtp.norm),
            head=program.head.packed,
        )

    def _make(self, requests: Sequence[DraftRequest], counts: Sequence[int]) -> list[list[int]]:
        lanes = [self._lanes[request.lane] for request in requests]
        self.catch_up([request.lane for request, lane in zip(requests, lanes, strict=True) if lane.owes > MOST])
        order = sorted(range(len(requests)), key=lambda index: -counts[index])
        asked, lanes = [requests[index] for index in order], [lanes[index] for index in order]
        most, wanted = counts[order[0]], np.array([counts[index] for index in order], np.int64)
        inputs = self._owed_by(asked)
        owed = _owed(lanes, [own for own, _ in inputs], [own for _, own in inputs], most)
        drafts = np.empty((len(order), most), np.int64)
        make_drafts(self._weights, *self._angles(owed, most), owed, wanted, drafts)
        self._seen(asked)
        made: list[list[int]] = [[] for _ in requests]
        for index, own in zip(order, drafts.tolist(), strict=True):
            made[index] = own[: counts[index]]
        return made

    def _write(self, lanes: Sequence[Lane], hidden: Sequence[torch.Tensor], tokens: Sequence[Sequence[int]]) -> None:
        """Keys and values alone: nothing reads the layer's results."""
        owed = _owed(lanes, hidden, tokens, 0)
        write_entries(self._weights, self._for_keys, *self._angles(owed, 0), owed)

    def _angles(self, owed: Owed, further: int) -> tuple[Array, Array]:
        """cos and sin of all that is owed and of `further` positions of each row, fp32 [rows, positions, dim / 2]."""
        return rotary_at(self._rope, owed.origins[:, None] + np.arange(np.diff(owed.first).max() + further))


def _owed(lanes: Sequence[Lane], hidden: Sequence[torch.Tensor], tokens: Sequence[Sequence[int]], further: int) -> Owed:
    """Positions of lanes from `written` on, with blocks for so many `further` ones."""
    first = np.cumsum([0, *(len(own) for own in tokens)])
    starts = np.array([lane.written for lane in lanes], np.int64)
    used = -(-(starts + np.diff(first) + further) // BLOCK_SIZE)
    tables = np.zeros((len(lanes), int(used.max())), np.int32)
    for index, (lane, count) in enumerate(zip(lanes, used.tolist(), strict=True)):
        own = lane.blocks[:count]
        tables[index, : len(own)] = own
    flat = np.array([token for own in tokens for token in own], np.int64)
    return Owed(
        array(hidden[0] if len(hidden) == 1 else torch.cat(list(hidden))), flat, first, starts, starts - 1, tables
    )
