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
from ..model.mlp import MLP
from ..model.norm import RMSNorm
from ..ops.attention.numba_pages import Pages
from ..ops.attention.numba_step import attention_step
from ..ops.gated_delta_rule.numba_step import delta_net_step
from ..ops.numba.held import Table, take_rows
from ..ops.numba.pairs import norm_project_both
from ..ops.numba.projections import Matrix, Norm, Weight, norm_project, project_add, project_add_few
from ..ops.numba.rows import normalise
from ..ops.numba.scalar import Array, array, f32
from ..ops.numba.weights import DeltaNetWeights
from ..step import Row
from .cpu_state import source
from .fused_blocks import DenseBlock, MixtureBlock
from .held import HeldEmbedding, HeldLinear
from .held_mixture import HeldMixture
from .rotary import rotary_at


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
    """The mixer of an attention layer: its heads' norms and its cache."""

    query: Norm
    key: Norm
    pages: Pages

    def run(self, projected: Array, rows: StepRows, out: Array) -> None:
        norms = self.query.weight, self.key.weight, self.query.eps
        attention_step(projected, *norms, rows.cos, rows.sin, self.pages, rows.tables, rows.ends, out)


@dataclass(frozen=True, slots=True)
class LayerProgram:
    """A decoder layer. Weights are [out, in].

    Attributes:
        in_proj: all that the mixer projects its input to, but for `gates`.
        gates: DeltaNet's small input projection, where it is held in other numbers than the large one.
    """

    index: int
    input_norm: Norm
    in_proj: Weight
    gates: Weight | None
    mixer: DeltaNetStep | AttentionStep
    out_proj: Weight
    post_norm: Norm
    block: DenseBlock | MixtureBlock

    @classmethod
    def of(cls, layer: DecoderLayer, cache: HybridCache, weights: dict[int, DeltaNetWeights]) -> LayerProgram:
        """Joins a DeltaNet block's two input projections in memory: the block's weights become views of the whole.

        Not those of a quantised checkpoint.
        """
        block = layer.mixer
        mixer: DeltaNetStep | AttentionStep
        gates = None
        if isinstance(block, GatedDeltaNet):
            out_proj = block.out_proj
            if isinstance(block.in_proj_qkvz, HeldLinear):
                in_proj, gates = weight_of(block.in_proj_qkvz), weight_of(block.in_proj_ba)
            else:
                in_proj = Weight.of(_join(block.in_proj_qkvz, block.in_proj_ba))
            bank = cache.banks[block.index]
            mixer = DeltaNetStep(weights[block.index], array(bank.window), array(bank.recurrent))
        else:
            in_proj, out_proj = weight_of(block.in_proj_qgkv), block.o_proj
            pages = Pages.of(*cache.positions(block.index), block.k_scale, block.v_scale)
            mixer = AttentionStep(norm_of(block.q_norm), norm_of(block.k_norm), pages)
        return cls(
            block.index,
            norm_of(layer.input_norm),
            in_proj,
            gates,
            mixer,
            weight_of(out_proj),
            norm_of(layer.post_norm),
            _block_of(layer.mlp),
        )

    @property
    def width(self) -> int:
        """Numbers that the mixer's input is projected to."""
        return self.in_proj.outputs + (0 if self.gates is None else self.gates.outputs)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """The mixer's input [..., hidden], normed, projected, for many rows: [..., width]."""
        first = self.in_proj.product(x)
        return first if self.gates is None else torch.cat((first, self.gates.product(x)), -1)

    def norm_and_project(self, x: Matrix, normed: Matrix, out: Matrix) -> None:
        """The same of a residual [rows, hidden], for few rows and with the norm before it."""
        if self.gates is None:
            norm_project(x, self.input_norm, self.in_proj, normed, out)
        else:
            norm_project_both(x, self.input_norm, self.in_proj, self.gates, normed, out)


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
        self.embedding = _table_of(model.embed_tokens)
        layers = [layer for layer in model.layers if isinstance(layer, DecoderLayer)]
        self.layers = [LayerProgram.of(layer, cache, weights) for layer in layers]
        self.norm, self.head = norm_of(model.norm), weight_of(model.lm_head)
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
        take_rows(self.embedding, np.array(tokens, np.int64), residual.array)
        for layer in self.layers:
            projected, mixed = buffers.projected[layer.width], buffers.mixed[layer.out_proj.inputs]
            layer.norm_and_project(residual, normed, projected)
            mix(layer, projected.array, mixed.array)
            project_add(mixed, layer.out_proj, residual)
            layer.block.add_to(residual, layer.post_norm, normed, inner)
        hidden = torch.empty(len(tokens), self.config.hidden_size)
        normalise(residual.array, *self.norm, array(hidden))
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 [positions, vocab] of hidden states [positions, hidden], for few positions.

        Not by a matrix library: its threads keep a core for a while after each call, waiting for the next one.
        """
        found = torch.zeros(len(hidden), self.head.outputs)
        project_add_few(array(hidden), self.head.packed, array(found))
        return found

    def angles(self, positions: Array) -> tuple[Array, Array]:
        """cos and sin of positions, int64 [n]: each fp32 [n, dim / 2]."""
        cos, sin = rotary_at(self.config.rope, positions[None])
        return cos[0], sin[0]

    def _rows(self, rows: Sequence[Row]) -> StepRows:
        cos, sin = self.angles(np.array([row.start for row in rows], np.int64))
        lanes, ends = (np.array([getattr(row, name) for row in rows], np.int64) for name in ("lane", "end"))
        origins = np.array([source(row, self.spec) for row in rows], np.int64)
        fresh = np.array([row.start == 0 for row in rows], np.bool_)
        return StepRows(lanes, origins, fresh, ends, block_tables(rows), cos, sin)

    def buffers(self, rows: int) -> Buffers:
        """Of that many rows: parts of the memory of the most rows that there were."""
        return self._buffers.get(rows) or self._make_buffers(rows)

    def _make_buffers(self, rows: int) -> Buffers:
        if self._whole is None or rows > len(self._whole.residual.array):
            hidden, inner = self.config.hidden_size, self.layers[0].block.inner
            wide = {layer.width for layer in self.layers}
            mixed = {layer.out_proj.inputs for layer in self.layers}
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


def weight_of(layer: nn.Module) -> Weight:
    """A linear layer's weight as fused operations take it."""
    return layer.held if isinstance(layer, HeldLinear) else Weight.of(_weight(layer))


def _block_of(module: nn.Module) -> DenseBlock | MixtureBlock:
    """A layer's feed-forward block likewise."""
    if isinstance(module, HeldMixture):
        return MixtureBlock(module.held)
    assert isinstance(module, MLP)
    return DenseBlock(weight_of(module.gate_up_proj), weight_of(module.down_proj))


def _table_of(layer: nn.Module) -> Table:
    """An embedding's weight likewise."""
    return layer.held if isinstance(layer, HeldEmbedding) else Table.over(array(_weight(layer)))


def _weight(layer: nn.Module) -> torch.Tensor:
    assert isinstance(layer.weight, torch.Tensor)
    return layer.weight


def _join(*layers: nn.Module) -> torch.Tensor:
    """The layers' weights one after the other in one memory, of which theirs become parts."""
    whole = torch.cat([_weight(layer) for layer in layers])
    for layer, part in zip(layers, whole.split([len(_weight(layer)) for layer in layers]), strict=True):
        _weight(layer).data = part
    return whole
