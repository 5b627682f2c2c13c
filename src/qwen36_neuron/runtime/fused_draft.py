"""The multi-token-prediction layer on CPU as a few fused calls, for as few positions as drafting takes at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..cache import HybridCache
from ..config import BLOCK_SIZE
from ..model import Qwen36Model
from ..model.layers import Linear
from ..model.mtp import MtpLayer
from ..ops.attention.numba import store_keys
from ..ops.numba.drafts import VerifyRows
from ..ops.numba.projections import Matrix, norm_project, norm_swiglu, project_add
from ..ops.numba.rows import normalise
from ..ops.numba.scalar import array
from ..step import DraftRequest
from .cpu_draft import CpuDraftLayer, Lane
from .cpu_layers import linear
from .fused_decode import AttentionStep, DecodeProgram, LayerProgram, norm_of
from .fused_verify import MOST, attend_rows, rotations

BEGIN = 1
"""The first position that has an entry: the layer's input is of the hidden state before it."""


class FusedDraftLayer(CpuDraftLayer):
    """Its results are those of `CpuDraftLayer` within fp32 rounding; longer parts, of prompts, run as there."""

    def __init__(self, model: Qwen36Model, cache: HybridCache, max_model_len: int, program: DecodeProgram) -> None:
        super().__init__(model, cache, max_model_len)
        layer = model.mtp
        assert isinstance(layer, MtpLayer)
        assert isinstance(layer.fc, Linear)
        self._program = program
        self._layer = LayerProgram.of(layer.layer, cache, {})
        self._fc = Matrix.of(layer.fc.weight)
        self._norm_embedding, self._norm_hidden = norm_of(layer.norm_embedding), norm_of(layer.norm_hidden)
        self._norm = norm_of(layer.norm)

    def _run(
        self, lanes: Sequence[Lane], hidden: Sequence[torch.Tensor], tokens: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        counts = [len(own) for own in tokens]
        if max(counts) > MOST:
            return super()._run(lanes, hidden, tokens)
        flat = [token for own in tokens for token in own]
        starts, tables = [lane.written for lane in lanes], [lane.blocks for lane in lanes]
        found = self._through(torch.cat(list(hidden)), flat, starts, counts, tables)
        return found[np.cumsum(counts) - 1].unsqueeze(1)

    def _write(self, lanes: Sequence[Lane], hidden: Sequence[torch.Tensor], tokens: Sequence[Sequence[int]]) -> None:
        """Keys and values alone: nothing reads the layer's results."""
        layer = self._layer
        assert isinstance(layer.mixer, AttentionStep)
        for lane, own, ids in zip(lanes, hidden, tokens, strict=True):
            inputs = linear(self._joined(own.contiguous(), ids).tensor, self._fc.tensor)
            normed = torch.empty_like(inputs)
            normalise(array(inputs), *layer.input_norm, array(normed))
            kv = linear(normed, layer.in_proj.tensor[-2 * layer.mixer.keys[0].size :])
            end = lane.written + len(ids)
            cos, sin = rotations(torch.arange(lane.written - 1, end - 1), self._program.config)
            rows, norm = _rows([lane.written], [len(ids)], [lane.blocks]), layer.mixer.key
            where = rows.tables, rows.starts, np.array([end], np.int64)
            cache = layer.mixer.keys, layer.mixer.values
            store_keys(array(kv[None]), norm.weight, norm.eps, cos[None], sin[None], *where, *cache)

    def _joined(self, hidden: torch.Tensor, tokens: Sequence[int]) -> Matrix:
        """Both inputs of the layer, normed, side by side: [positions, 2 hidden]."""
        size, made = hidden.shape[1], Matrix.empty(len(tokens), 2 * hidden.shape[1])
        part = np.empty((len(tokens), size), np.float32)
        normalise(np.take(self._program.embedding, tokens, axis=0), *self._norm_embedding, part)
        made.array[:, :size] = part
        normalise(array(hidden), *self._norm_hidden, part)
        made.array[:, size:] = part
        return made

    def _chain(
        self, requests: Sequence[DraftRequest], tokens: Sequence[int], hidden: torch.Tensor, place: int
    ) -> torch.Tensor:
        starts = [self._lanes[request.lane].end + place for request in requests]
        tables = [request.blocks for request in requests]
        return self._through(hidden[:, 0].contiguous(), tokens, starts, [1] * len(starts), tables).unsqueeze(1)

    def _through(
        self,
        hidden: torch.Tensor,
        tokens: Sequence[int],
        starts: Sequence[int],
        counts: Sequence[int],
        tables: Sequence[Sequence[int]],
    ) -> torch.Tensor:
        """The layer's results, fp32 [positions, hidden].

        Args:
            hidden: [positions, hidden], those before each position; tokens: those at each.
            starts, counts: first position and number of positions of each row; tables: its blocks.
        """
        layer, buffers = self._layer, self._program.buffers(len(tokens))
        assert isinstance(layer.mixer, AttentionStep)
        joined = self._joined(hidden, tokens)
        residual, normed, inner = buffers.residual, buffers.normed, buffers.inner
        residual.array.fill(0.0)
        project_add(joined, self._fc, residual)

        projected, mixed = buffers.projected[len(layer.in_proj.array)], buffers.mixed[layer.out_proj.array.shape[1]]
        norm_project(residual, layer.input_norm, layer.in_proj, normed, projected)
        spans = [torch.arange(start - 1, start - 1 + count) for start, count in zip(starts, counts, strict=True)]
        angles = rotations(torch.cat(spans), self._program.config)
        attend_rows(layer.mixer, projected.array, _rows(starts, counts, tables), *angles, BEGIN, mixed.array)
        project_add(mixed, layer.out_proj, residual)
        norm_swiglu(residual, layer.post_norm, layer.gate_up, normed, inner)
        project_add(inner, layer.down, residual)
        found = torch.empty(len(tokens), hidden.shape[1])
        normalise(residual.array, *self._norm, array(found))
        return found


def _rows(starts: Sequence[int], counts: Sequence[int], tables: Sequence[Sequence[int]]) -> VerifyRows:
    """The rows as attention sees them; nothing else of them is asked for."""
    used = [-(-(start + count) // BLOCK_SIZE) for start, count in zip(starts, counts, strict=True)]
    blocks = np.zeros((len(starts), max(used)), np.int32)
    for index, (table, count) in enumerate(zip(tables, used, strict=True)):
        blocks[index, :count] = table[:count]
    none = np.zeros(len(starts), np.int64)
    first = np.cumsum([0, *counts]).astype(np.int64)
    marks = np.zeros((0, 3), np.int64)
    return VerifyRows(none, none, none > 0, none, none, first, np.array(starts, np.int64), blocks, marks)
