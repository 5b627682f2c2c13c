"""A decode step on CPU as a program of fused calls: five a layer, on buffers that are made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ..cache import HybridCache
from ..config import BLOCK_SIZE
from ..model import Qwen36Model
from ..model.decoder import DecoderLayer
from ..model.deltanet import GatedDeltaNet
from ..model.norm import RMSNorm
from ..ops.attention.numba_step import attention_step
from ..ops.gated_delta_rule.numba_step import delta_net_step
from ..ops.numba.projections import Matrix, Norm, Weight, norm_project, norm_swiglu, project_add, project_add_few
from ..ops.numba.rows import normalise
from ..ops.numba.scalar import Array, array, f32
from ..ops.numba.weights import DeltaNetWeights
from ..step import Row
from .cpu_state import source
from .rotary_table import RotaryTable


class StepRows(NamedTuple):
    """The rows of one step.

    Attributes:
        lanes, sources, ends: int64 [batch]: the entries where the states are left and read, and the tokens held after
            the step.
        fresh: bool [batch], rows whose state is zero.
        tables: int32 [batch, n], the rows' blocks, 0 after a row's last.
        cos, sin: fp32 [batch, dim / 2], the rotation of the new tokens' positions.
    """

    lanes: Array
    sources: Array
    fresh: Array
    ends: Array
    tables: Array
    cos: Array
    sin: Array


@dataclass(frozen=True, slots=True)
class DeltaNetStep:
    """A DeltaNet layer's mixer and bank: windows [entries, K - 1, channels], states [entries, heads, dk, dv]."""

    weights: DeltaNetWeights
    windows: Array
    states: Array

    def run(self, projected: Array, rows: StepRows, out: Array) -> None:
        w = self.weights
        small = w.taps, w.rate, w.dt_bias, w.norm_weight, w.eps
        where = rows.lanes, rows.sources, rows.fresh
        delta_net_step(projected, *small, self.windows, self.states, *where, w.key_heads, out)


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """The mixer of an attention layer, its heads' norms and its cache [positions, kv_heads, head_dim]."""

    query: Norm
    key: Norm
    keys: Array
    values: Array

    def run(self, projected: Array, rows: StepRows, out: Array) -> None:
        norms = self.query.weight, self.key.weight, self.query.eps
        attention_step(projected, *norms, rows.cos, rows.sin, self.keys, self.values, rows.tables, rows.ends, out)


@dataclass(frozen=True, slots=True)
class LayerProgram:
    """A decoder layer. Weights are [out, in]; `in_proj` is all that the mixer projects its input to."""

    index: int
    input_norm: Norm
    in_proj: Weight
    mixer: DeltaNetStep | AttentionStep
    out_proj: Weight
    post_norm: Norm
    gate_up: Weight
    down: Weight

    @classmethod
    def of(cls, layer: DecoderLayer, cache: HybridCache, weights: dict[int, DeltaNetWeights]) -> LayerProgram:
        """Joins a DeltaNet block's two input projections in memory: the block's weights become views of the whole."""
        block = layer.mixer
        mixer: DeltaNetStep | AttentionStep
        if isinstance(block, GatedDeltaNet):
            in_proj, out_proj = _join(block.in_proj_qkvz, block.in_proj_ba), block.out_proj
            bank = cache.banks[block.index]
            mixer = DeltaNetStep(weights[block.index], array(bank.window), array(bank.recurrent))
        else:
            in_proj, out_proj = _weight(block.in_proj_qgkv), block.o_proj
            keys, values = (array(half) for half in cache.positions(block.index))
            mixer = AttentionStep(norm_of(block.q_norm), norm_of(block.k_norm), keys, values)
        return cls(
            block.index,
            norm_of(layer.input_norm),
            Weight.of(in_proj),
            mixer,
            Weight.of(_weight(out_proj)),
            norm_of(layer.post_norm),
            Weight.of(_weight(layer.mlp.gate_up_proj)),
            Weight.of(_weight(layer.mlp.down_proj)),
        )


class Buffers(NamedTuple):
    """What the layers of a step of so many rows work in; what differs between kinds of layers is by width."""

    residual: Matrix
    normed: Matrix
    inner: Matrix
    projected: dict[int, Matrix]
    mixed: dict[int, Matrix]

    def part(self, rows: int) -> Buffers:
        """The first rows of each."""

        def first(matrix: Matrix) -> Matrix:
            return Matrix.of(matrix.tensor[:rows])

        return Buffers(
            first(self.residual),
            first(self.normed),
            first(self.inner),
            {size: first(matrix) for size, matrix in self.projected.items()},
            {size: first(matrix) for size, matrix in self.mixed.items()},
        )


class DecodeProgram:
    """The network for one token a row, fp32. What it computes is `Qwen36Model.forward`, in fewer and larger steps."""

    def __init__(self, model: Qwen36Model, cache: HybridCache, weights: dict[int, DeltaNetWeights]) -> None:
        self.config, self.spec = model.config, cache.spec
        self.embedding = array(_weight(model.embed_tokens))
        layers = [layer for layer in model.layers if isinstance(layer, DecoderLayer)]
        self.layers = [LayerProgram.of(layer, cache, weights) for layer in layers]
        self.norm, self.head = norm_of(model.norm), Weight.of(_weight(model.lm_head))
        self.rotary = RotaryTable(self.config.rope)
        self._whole: Buffers | None = None
        self._buffers: dict[int, Buffers] = {}

    def run(self, rows: Sequence[Row]) -> torch.Tensor:
        """Run one token of each row: hidden states after the final norm, [rows, 1, hidden].

        Memory of lanes and blocks is updated in place.
        """
        step = self._rows(rows)
        hidden = self.through([row.tokens[0] for row in rows], lambda layer, x, out: layer.mixer.run(x, step, out))
        return hidden.unsqueeze(1)

    def through(self, tokens: Sequence[int], mix: Callable[[LayerProgram, Array, Array], None]) -> torch.Tensor:
        """The network over tokens that only mixers know the rows of: hidden states after the final norm.

        Args:
            mix: (layer, projected [tokens, ...], out [tokens, ...]) runs a layer's mixer.
        Returns:
            fp32 [tokens, hidden].
        """
        buffers = self.buffers(len(tokens))
        residual, normed, inner = buffers.residual, buffers.normed, buffers.inner
        np.take(self.embedding, tokens, axis=0, out=residual.array)
        for layer in self.layers:
            projected, mixed = (
                buffers.projected[len(layer.in_proj.tensor)],
                buffers.mixed[layer.out_proj.tensor.shape[1]],
            )
            norm_project(residual, layer.input_norm, layer.in_proj, normed, projected)
            mix(layer, projected.array, mixed.array)
            project_add(mixed, layer.out_proj, residual)
            norm_swiglu(residual, layer.post_norm, layer.gate_up, normed, inner)
            project_add(inner, layer.down, residual)
        hidden = torch.empty(len(tokens), self.config.hidden_size)
        normalise(residual.array, *self.norm, array(hidden))
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 [positions, vocab] of hidden states [positions, hidden], for few positions.

        Not by a matrix library: its threads keep a core for a while after each call, waiting for the next one.
        """
        found = torch.zeros(len(hidden), len(self.head.tensor))
        project_add_few(array(hidden), self.head.packed, array(found))
        return found

    def _rows(self, rows: Sequence[Row]) -> StepRows:
        cos, sin = self.rotary.at(np.array([row.start for row in rows], np.int64))
        lanes, ends = (np.array([getattr(row, name) for row in rows], np.int64) for name in ("lane", "end"))
        origins = np.array([source(row, self.spec) for row in rows], np.int64)
        fresh = np.array([row.start == 0 for row in rows], np.bool_)
        return StepRows(lanes, origins, fresh, ends, block_tables(rows), cos, sin)

    def buffers(self, rows: int) -> Buffers:
        """Of that many rows: parts of the memory of the most rows that there were."""
        return self._buffers.get(rows) or self._make_buffers(rows)

    def _make_buffers(self, rows: int) -> Buffers:
        if self._whole is None or rows > len(self._whole.residual.array):
            hidden, inner = self.config.hidden_size, self.config.intermediate_size
            wide = {len(layer.in_proj.tensor) for layer in self.layers}
            mixed = {layer.out_proj.tensor.shape[1] for layer in self.layers}
            self._whole = Buffers(
                residual=Matrix.empty(rows, hidden),
                normed=Matrix.empty(rows, hidden),
                inner=Matrix.empty(rows, inner),
                projected={size: Matrix.empty(rows, size) for size in wide},
                mixed={size: Matrix.empty(rows, size) for size in mixed},
            )
            self._buffers.clear()
        self._buffers[rows] = made = self._whole.part(rows)
        return made


def block_tables(rows: Sequence[Row]) -> Array:
    """int32 [rows, n]: the blocks that hold each row's tokens and drafts, 0 after its last."""
    used = [-(-row.reach // BLOCK_SIZE) for row in rows]
    tables = np.zeros((len(rows), max(used)), np.int32)
    for index, (row, count) in enumerate(zip(rows, used, strict=True)):
        tables[index, :count] = row.blocks[:count]
    return tables


def norm_of(module: RMSNorm) -> Norm:
    """An RMSNorm as fused operations take it."""
    return Norm(array(module.weight), f32(module.eps))


def _weight(layer: nn.Module) -> torch.Tensor:
    assert isinstance(layer.weight, torch.Tensor)
    return layer.weight


def _join(*layers: nn.Module) -> torch.Tensor:
    """The layers' weights one after the other in one memory, of which theirs become parts."""
    whole = torch.cat([_weight(layer) for layer in layers])
    for layer, part in zip(layers, whole.split([len(_weight(layer)) for layer in layers]), strict=True):
        _weight(layer).data = part
    return whole
