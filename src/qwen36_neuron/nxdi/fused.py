"""Feed-forward blocks, attention layers and DeltaNet projections on weights in the order of the fused kernels.

Every graph of an artifact reads the same weights. Those of a stage with fused kernels launch them; the others, those of
prompts among them, run plain operations on the same order (`ops.fused.packed`), so there is no second copy of a weight.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import torch
from neuronx_distributed.parallel_layers.mappings import reduce_from_tensor_model_parallel_region
from torch import nn

from nki_kernels.decode_attention_torch import PackedAttention, pack_factor
from nki_kernels.decode_delta_net_plan import sequences_at_once
from nki_kernels.decode_head_torch import pack_head, pack_scale
from nki_kernels.decode_mlp_projection_torch import pack_blocks
from nki_kernels.decode_mlp_torch import PackedMlp, pack
from nki_kernels.decode_projection_torch import pack_columns, pack_rows

from ..checkpoint.weight_format import QUANTISED, WeightFormat
from ..config import LayerType, ModelConfig
from ..graph.state import GraphDecode, GraphVerify
from ..model.attention import Attention
from ..model.deltanet import GatedDeltaNet
from ..model.layers import LayerFactory
from ..model.norm import RMSNorm
from ..model.state import StateOperations, StepState
from ..ops.fused import packed
from ..ops.fused.nki import (
    Searched,
    StepWeights,
    attention_nki,
    delta_net_input_nki,
    delta_net_output_nki,
    delta_net_step_nki,
    feed_forward_and_input_nki,
    feed_forward_nki,
    head_nki,
)
from ..ops.launch import Launch
from ..ops.nki_kernels import NkiKernels
from .config import Qwen36InferenceConfig

TILE = 128


class PackedLinear(nn.Module):
    """A projection of one rank, by plain operations on its weight as a fused kernel reads it.

    Attributes:
        weight: bfloat16, or uint8 codes of at most 240, [cores, 128, n].
        scale: fp32 [cores, outputs / cores], of codes; None without.
    """

    scale: torch.Tensor | None

    def __init__(
        self, inputs: int, outputs: int, cores: int, codes: bool, heads: bool = False, blocks: bool = False
    ) -> None:
        """heads: inputs are heads, whose result is summed over the ranks; else they are the hidden size.

        blocks: these inputs are in the order of heads all the same, as `pack_blocks` has them.
        """
        super().__init__()
        self.heads, self.blocks = heads, blocks
        size = (cores, TILE, inputs // TILE * outputs // cores)
        dtype = torch.uint8 if codes else torch.bfloat16
        self.weight = nn.Parameter(torch.zeros(size, dtype=dtype), requires_grad=False)
        scale = torch.ones(cores, outputs // cores, dtype=torch.float32)
        self.register_parameter("scale", nn.Parameter(scale, requires_grad=False) if codes else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inputs] -> [..., outputs]."""
        if self.heads:
            return _summed(packed.rows(x, self.weight, self.scale))
        return (packed.rows if self.blocks else packed.columns)(x, self.weight, self.scale)


class Ahead:
    """What a feed-forward block's kernel has projected for the mixer of the next layer, until that takes it.

    Attributes:
        mixer, norm: that mixer, and the norm before it.
    """

    def __init__(self, mixer: FusedDeltaNet, norm: RMSNorm) -> None:
        self.mixer, self.norm = mixer, norm
        self._given: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def put(self, x: torch.Tensor, qkvz: torch.Tensor, ba: torch.Tensor) -> None:
        """Of the residual x."""
        self._given = x, qkvz, ba

    def take(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What was put of x, once."""
        given, self._given = self._given, None
        assert given is not None
        assert given[0] is x
        return given[1:]


class FusedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) of one rank.

    Args:
        launch: of the fused kernel; None for plain operations.

    Attributes:
        gate_up, down: bfloat16 or uint8 [cores, 128, n], see `nki_kernels.decode_mlp_torch.PackedMlp`.
        gate_up_scale, down_scale: fp32 [cores, 128, n] and [cores, hidden / cores], of codes; None without.
    """

    gate_up: torch.Tensor
    down: torch.Tensor
    gate_up_scale: torch.Tensor | None
    down_scale: torch.Tensor | None

    def __init__(self, config: ModelConfig, tp: int, cores: int, codes: bool, launch: Launch | None) -> None:
        super().__init__()
        self.tp, self.launch = tp, launch
        self.ahead: Ahead | None = None
        hidden, inner = config.hidden_size, config.intermediate_size // tp
        own, dtype = inner // cores // TILE, torch.uint8 if codes else torch.bfloat16
        for name, size, kind in (
            ("gate_up", (cores, TILE, hidden // TILE * 2 * own * TILE), dtype),
            ("down", (cores, TILE, inner // TILE * hidden // cores), dtype),
            ("gate_up_scale", (cores, TILE, 2 * own), torch.float32),
            ("down_scale", (cores, hidden // cores), torch.float32),
        ):
            held = codes or not name.endswith("scale")
            parameter = nn.Parameter(torch.zeros(size, dtype=kind), requires_grad=False) if held else None
            self.register_parameter(name, parameter)

    @property
    def weights(self) -> PackedMlp:
        """Of this rank."""
        return PackedMlp(self.gate_up, self.down, self.gate_up_scale, self.down_scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, hidden] in and out, the ranks' results added up."""
        return _summed(packed.swiglu(x, self.weights))

    def add_to(self, x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
        """As in `model.mlp.MLP`."""
        if self.launch is None:
            return x + self(norm(x))
        if self.ahead is None:
            return feed_forward_nki(self.launch, x, norm.weight, self.weights, self.tp, norm.eps)
        into, gates = self.ahead.mixer.in_proj_qkvz, self.ahead.mixer.in_proj_ba
        beside = self.ahead.norm.weight, into.weight, into.scale, gates.weight
        y, qkvz, ba = feed_forward_and_input_nki(self.launch, x, norm.weight, self.weights, *beside, self.tp, norm.eps)
        self.ahead.put(y, qkvz, ba)
        return y


class FusedDeltaNet(GatedDeltaNet):
    """The mixer with `PackedLinear` projections, or with kernels in their place.

    Of one token a row all behind the input projections is one kernel, as far as a launch of it takes the rows.

    Args:
        codes: the large projections are codes; those of the gates are bfloat16 in any case.
        launch: of the fused kernels; None for plain operations.
        joined: the feed-forward block before has the input projections in its kernel, where it is launched.
    """

    in_proj_qkvz: PackedLinear
    in_proj_ba: PackedLinear
    out_proj: PackedLinear

    def __init__(
        self,
        config: ModelConfig,
        layers: LayerFactory,
        index: int,
        cores: int,
        codes: bool,
        launch: Launch | None,
        joined: bool,
    ) -> None:
        super().__init__(config, layers, index)
        self.tp, self.launch = layers.tp, launch
        self.ahead: Ahead | None = None
        self.rows_at_once = sequences_at_once(self.key_heads // cores, self.value_heads // cores)
        hidden, values = config.hidden_size, self.value_heads * self.value_head_dim
        self.in_proj_qkvz = PackedLinear(hidden, self.conv_channels + values, cores, codes, blocks=joined)
        self.in_proj_ba = PackedLinear(hidden, 2 * self.value_heads, cores, False, blocks=joined)
        self.out_proj = PackedLinear(values, hidden, cores, codes, heads=True)

    def add_to(self, x: torch.Tensor, norm: RMSNorm, state: StepState) -> torch.Tensor:
        if self.launch is None:
            return super().add_to(x, norm, state)
        into, out = self.in_proj_qkvz, self.out_proj
        if self.ahead is not None:
            qkvz, ba = self.ahead.take(x)
        else:
            held = into.weight, into.scale, self.in_proj_ba.weight
            qkvz, ba = delta_net_input_nki(self.launch, x, norm.weight, *held, norm.eps)
        if isinstance(state, GraphDecode) and len(x) <= self.rows_at_once:
            memory, at = state.memory, self.index
            banks = memory.window[at], memory.recurrent[at]
            weights = StepWeights(self.conv_weight, self.A, self.dt_bias, self.norm.weight, out.weight, out.scale)
            y, memory.window[at], memory.recurrent[at] = delta_net_step_nki(
                self.launch, x, qkvz, ba, banks, weights, state.batch, self.tp, self.norm.eps
            )
            return y
        mixed, gate = self.between(qkvz, ba, cast(StateOperations, state))  # a graph's state has the operations
        of = self.norm.weight, out.weight, out.scale
        return delta_net_output_nki(self.launch, x, mixed, gate, *of, self.tp, self.norm.eps)


class FusedAttention(Attention):
    """The mixer with `PackedLinear` projections, or a kernel in its place.

    Args:
        codes: the projections are codes.
        launch: of the fused kernel; None for plain operations.
    """

    in_proj_qgkv: PackedLinear
    o_proj: PackedLinear

    def __init__(
        self, config: ModelConfig, layers: LayerFactory, index: int, cores: int, codes: bool, launch: Launch | None
    ) -> None:
        super().__init__(config, layers, index)
        self.tp, self.launch = layers.tp, launch
        hidden, heads, size = config.hidden_size, self.query_heads, self.head_dim
        self.in_proj_qgkv = PackedLinear(hidden, 2 * (heads + self.kv_heads) * size, cores, codes)
        self.o_proj = PackedLinear(heads * size, hidden, cores, codes, heads=True)

    @property
    def weights(self) -> PackedAttention:
        """Of this rank."""
        into, out = self.in_proj_qgkv, self.o_proj
        factors = pack_factor(self.q_norm.weight), pack_factor(self.k_norm.weight)
        return PackedAttention(into.weight, out.weight, *factors, into.scale, out.scale)

    def add_to(
        self,
        x: torch.Tensor,
        norm: RMSNorm,
        rotary: tuple[torch.Tensor, torch.Tensor],
        state: StepState,
        last: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self.launch is None:
            return super().add_to(x, norm, rotary, state, last)
        assert last is None  # rows of few tokens are asked for all of them
        step = cast(GraphDecode | GraphVerify, state)
        rows = step.paged(self.index)
        y, step.memory.kv[self.index] = attention_nki(
            self.launch, x, norm.weight, self.weights, rotary, rows, self.tp, norm.eps
        )
        return y


class FusedHead(nn.Module):
    """The head of one rank with the norm before it, by a kernel in every graph.

    In the order that the kernel reads, tokens lie in runs of a few from all over the vocabulary: what plain operations
    made of it they would have to put in order by a gather of all logits.

    Attributes:
        weight: bfloat16, or uint8 codes of at most 240, [cores, 128, n].
        scale: fp32 [cores, vocab / ranks / cores], of codes; None without.
    """

    scale: torch.Tensor | None

    def __init__(self, config: ModelConfig, tp: int, cores: int, codes: bool, launch: Launch) -> None:
        super().__init__()
        self.launch = launch
        own, dtype = config.vocab_size // tp // cores, torch.uint8 if codes else torch.bfloat16
        size = (cores, TILE, config.hidden_size // TILE * own)
        self.weight = nn.Parameter(torch.zeros(size, dtype=dtype), requires_grad=False)
        scale = torch.ones(cores, own, dtype=torch.float32)
        self.register_parameter("scale", nn.Parameter(scale, requires_grad=False) if codes else None)

    def search(self, x: torch.Tensor, norm: RMSNorm) -> Searched:
        """x: [rows, hidden] before the norm."""
        return head_nki(self.launch, x, norm.weight, self.weight, self.scale, norm.eps)


def set_fused(network: nn.Module, config: Qwen36InferenceConfig, layers: LayerFactory, launched: bool) -> None:
    """Put these in the place of every feed-forward block and mixer, and of the head, of a network without weights yet.

    The draft layer keeps its own: of its graphs the head alone is a kernel. So do attention layers with FP8 keys and
    values, which their kernel does not read.

    Args:
        launched: by the fused kernels, else by plain operations.
    """
    options, model = config.neuron_config.options, config.model_config
    endings, cores = QUANTISED[WeightFormat(options.weights)], options.logical_cores
    kernels = NkiKernels(cores)
    launch = kernels.launch if launched else None
    of_head = "lm_head.weight" in endings
    network.lm_head = FusedHead(model, options.tp_degree, cores, of_head, kernels.launch)
    of_mlp, of_mixer = ("gate_up_proj.weight" in endings, "in_proj_qkvz.weight" in endings)
    attention, joined = options.fused_attention, options.joined_layers(model)
    blocks: list[FusedMLP] = []
    for index, (layer, kind) in enumerate(zip(network.layers, model.layer_types, strict=True)):  # type: ignore[arg-type]
        layer.mlp = FusedMLP(model, options.tp_degree, cores, of_mlp, launch)
        if kind is LayerType.DELTANET:
            layer.mixer = FusedDeltaNet(model, layers, index, cores, of_mixer, launch, index in joined)
        elif attention:
            layer.mixer = FusedAttention(model, layers, index, cores, of_mixer, launch)
        if launched and index in joined:
            blocks[-1].ahead = layer.mixer.ahead = Ahead(layer.mixer, layer.input_norm)
        blocks.append(layer.mlp)


def pack_weights(
    weights: dict[str, torch.Tensor], cores: int, attention: bool, joined: Collection[int]
) -> dict[str, torch.Tensor]:
    """A rank's weights with feed-forward blocks, mixers' projections and the head in the order of the fused kernels.

    `weights` is emptied on the way, so that no more than a matrix is held twice.

    Args:
        attention: those of attention layers too.
        joined: DeltaNet layers whose input projections the block before has in its kernel.
    """
    out: dict[str, torch.Tensor] = {}
    into, outof = {"in_proj_qkvz", "in_proj_ba"}, {"out_proj"}
    if attention:
        into, outof = into | {"in_proj_qgkv"}, outof | {"o_proj"}
    for name in list(weights):
        if name not in weights:
            continue
        block, _, rest = name.rpartition(".mlp.")
        mixer, _, projection = name.rpartition(".mixer.")
        if block.startswith("layers.") and rest:
            out |= _packed_mlp(weights, f"{block}.mlp.", cores)
        elif mixer.startswith("layers.") and projection.partition(".")[0] in into | outof:
            tensor, kind = weights.pop(name), pack_rows if projection.partition(".")[0] in outof else pack_columns
            if kind is pack_columns and int(mixer.split(".")[1]) in joined:
                kind = pack_blocks
            out[name] = tensor.view(cores, -1) if name.endswith(".scale") else kind(_codes(tensor), cores)
        elif name == "lm_head.weight":
            out[name] = pack_head(_codes(weights.pop(name)), cores)
        elif name == "lm_head.scale":
            out[name] = pack_scale(weights.pop(name).view(-1), cores)
        else:
            out[name] = weights.pop(name)
    return out


def _packed_mlp(weights: dict[str, torch.Tensor], prefix: str, cores: int) -> dict[str, torch.Tensor]:
    gate, up = _codes(weights.pop(f"{prefix}gate_up_proj.weight")).chunk(2)
    down, scales = _codes(weights.pop(f"{prefix}down_proj.weight")), None
    if f"{prefix}down_proj.scale" in weights:
        of_gate, of_up = weights.pop(f"{prefix}gate_up_proj.scale").view(-1).chunk(2)
        scales = of_gate, of_up, weights.pop(f"{prefix}down_proj.scale").view(-1)
    made = pack(gate, up, down, cores, scales)
    named = {name: getattr(made, name) for name in ("gate_up", "down", "gate_up_scale", "down_scale")}
    return {prefix + name: tensor for name, tensor in named.items() if tensor is not None}


def _codes(weight: torch.Tensor) -> torch.Tensor:
    """FP8 as the bytes that kernels take."""
    return weight if weight.dtype is torch.bfloat16 else weight.view(torch.uint8)


def _summed(y: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = reduce_from_tensor_model_parallel_region(y)
    return out
