"""Which rows and columns of the checkpoint make up each rank's weights.

Every runtime weight, of any rank, is a run of slices of checkpoint tensors laid end to end. This table of slices is the
only place that knows the layout: one rank's loader reads just its slices from the files, and the device's loader, which
cuts a global tensor into equal parts, is given all ranks' weights end to end (`arrange`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, StrEnum

import torch

from ..config import LayerType, ModelConfig, RankShape
from ..errors import ConfigError
from .experts import matrix, place
from .names import HEAD, Shapes


class Part(StrEnum):
    """What a weight belongs to; memory plans and number formats go by it."""

    EMBEDDING = "embeddings"
    ATTENTION = "attention"
    DELTANET = "deltanet"
    MLP = "mlp"
    ROUTER = "routers"
    NORM = "norms"
    MTP = "mtp"


class Cast(Enum):
    """How stored numbers become runtime numbers."""

    MODEL = "model"
    """In the model's dtype, as stored."""
    FP32 = "fp32"
    """As stored, in fp32."""
    ONE_PLUS = "one_plus"
    """1 + w in fp32: norms are stored around zero."""
    NEGATIVE_EXP = "negative_exp"
    """-exp(w) in fp32: A is stored as its logarithm."""
    CONV = "conv"
    """In the model's dtype, [channels, 1, kernel] to [channels, kernel]."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Elements `start` to `stop` of dimension `dim` of checkpoint tensor `name`; the other dimensions whole."""

    name: str
    dim: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class RankWeight:
    """One rank's share of a runtime weight: `slices` laid end to end, along the dimension that they cut.

    Attributes:
        replicated: every rank holds the same whole tensor.
        stacked: matrices of a mixture's experts, one upon the other as a first dimension: each is as many of the
            slices as the others, laid end to end. 0 for a weight that is one matrix.
    """

    slices: tuple[Slice, ...]
    part: Part
    cast: Cast = Cast.MODEL
    replicated: bool = False
    stacked: int = 0

    @property
    def dim(self) -> int:
        """The dimension that is split over ranks, and joined again by `arrange`."""
        return self.slices[0].dim + (1 if self.stacked else 0)

    @property
    def fp32(self) -> bool:
        """Kept in fp32 whatever the model's dtype is."""
        return self.cast in (Cast.FP32, Cast.ONE_PLUS, Cast.NEGATIVE_EXP)

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """Shape of the share, given the checkpoint's shapes."""
        first = self.slices[0]
        size = list(shapes[first.name])
        size[first.dim] = sum(piece.stop - piece.start for piece in self.slices) // max(self.stacked, 1)
        if self.stacked:
            return (self.stacked, *size)
        return (size[0], size[2]) if self.cast is Cast.CONV else tuple(size)


def rank_weights(config: ModelConfig, tp: int = 1, rank: int = 0, include_mtp: bool = False) -> dict[str, RankWeight]:
    """The weights that rank `rank` of `tp` holds, by runtime name.

    Raises:
        ConfigError: the model does not split into `tp` ranks, there is no such rank, or the model does not have the
            one multi-token-prediction layer asked for.
    """
    layout = _Layout(config, tp, rank)
    weights = {"embed_tokens.weight": layout.vocabulary("embed_tokens.weight")}
    for index, kind in enumerate(config.layer_types):
        weights |= layout.layer(f"layers.{index}.", f"layers.{index}.", kind)
    weights["norm.weight"] = layout.norm("norm.weight")
    weights["lm_head.weight"] = layout.vocabulary("embed_tokens.weight" if config.tie_word_embeddings else HEAD)
    if include_mtp:
        weights |= layout.mtp()
    return weights


def assemble(weight: RankWeight, read: Callable[[Slice], torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Build one rank's weight from what `read` gives for each slice; contiguous, in `dtype` or fp32."""
    if weight.stacked:
        each = len(weight.slices) // weight.stacked
        matrices = (weight.slices[first : first + each] for first in range(0, len(weight.slices), each))
        dim = weight.slices[0].dim
        return torch.stack([torch.cat([read(piece) for piece in matrix], dim).to(dtype) for matrix in matrices])
    parts = [read(piece) for piece in weight.slices]
    tensor = parts[0] if len(parts) == 1 else torch.cat(parts, dim=weight.dim)
    if weight.cast is Cast.ONE_PLUS:
        tensor = 1.0 + tensor.float()
    elif weight.cast is Cast.NEGATIVE_EXP:
        tensor = -tensor.float().exp()
    elif weight.cast is Cast.CONV:
        tensor = tensor.squeeze(1)
    return tensor.to(torch.float32 if weight.fp32 else dtype).contiguous()


def arrange(
    tensors: Mapping[str, torch.Tensor],
    config: ModelConfig,
    tp: int,
    dtype: torch.dtype,
    include_mtp: bool = False,
) -> dict[str, torch.Tensor]:
    """The global runtime weights, rank-major: cutting one into `tp` equal parts gives each rank's share.

    A tensor that every rank holds whole (norms) is returned once. Key/value heads that several ranks hold are repeated.

    Args:
        tensors: the checkpoint's tensors by canonical name; experts in either layout.
        dtype: of all weights but those kept in fp32.
    """

    def read(piece: Slice) -> torch.Tensor:
        return matrix(tensors, piece.name).narrow(piece.dim, piece.start, piece.stop - piece.start)

    if HEAD in tensors:
        config = replace(config, tie_word_embeddings=False)
    shares = [rank_weights(config, tp, rank, include_mtp) for rank in range(tp)]
    arranged = {}
    for name, weight in shares[0].items():
        where = place(weight.slices[0].name) if weight.stacked and tp == 1 else None
        if where is not None and where.name in tensors:
            arranged[name] = tensors[where.name].to(dtype)  # as it is published
        elif weight.replicated:
            arranged[name] = assemble(weight, read, dtype)
        else:
            arranged[name] = torch.cat([assemble(share[name], read, dtype) for share in shares], dim=weight.dim)
    return arranged


@dataclass(slots=True)
class _Layout:
    """The slices of one rank, block by block."""

    config: ModelConfig
    tp: int
    rank: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < max(self.tp, 1):
            raise ConfigError("rank", self.rank, f"tp_degree={self.tp} has no such rank", "Use 0 to tp_degree - 1")
        self.config.rank(self.tp)

    @property
    def shape(self) -> RankShape:
        return self.config.rank(self.tp)

    def vocabulary(self, name: str) -> RankWeight:
        return RankWeight((self._share(name, 0, self.config.vocab_size),), Part.EMBEDDING)

    def norm(self, name: str, size: int | None = None, cast: Cast = Cast.ONE_PLUS) -> RankWeight:
        return RankWeight((Slice(name, 0, 0, size or self.config.hidden_size),), Part.NORM, cast, replicated=True)

    def layer(self, source: str, target: str, kind: LayerType) -> dict[str, RankWeight]:
        """A decoder layer whose tensors start with `source` in the checkpoint and with `target` in the runtime."""
        mixer = self._attention if kind is LayerType.ATTENTION else self._deltanet
        return {
            f"{target}input_norm.weight": self.norm(f"{source}input_layernorm.weight"),
            f"{target}post_norm.weight": self.norm(f"{source}post_attention_layernorm.weight"),
            **{f"{target}mlp.{name}": weight for name, weight in self._feed_forward(f"{source}mlp.").items()},
            **{f"{target}mixer.{name}": weight for name, weight in mixer(source).items()},
        }

    def mtp(self) -> dict[str, RankWeight]:
        """The multi-token-prediction layer; all of it counts as Part.MTP."""
        if self.config.num_mtp_layers != 1:
            raise ConfigError(
                "mtp_num_hidden_layers",
                self.config.num_mtp_layers,
                "drafting needs a checkpoint with one multi-token-prediction layer",
                "Turn drafting off, or use a checkpoint that has the layer",
            )
        if self.config.hidden_size % self.tp:
            problem = f"hidden_size={self.config.hidden_size} does not divide by it, as the draft layer needs"
            raise ConfigError("tp_degree", self.tp, problem, "Use a smaller tp_degree, or turn drafting off")
        weights = {
            "mtp.fc.weight": RankWeight((self._share("mtp.fc.weight", 0, self.config.hidden_size),), Part.MTP),
            "mtp.norm_embedding.weight": self.norm("mtp.pre_fc_norm_embedding.weight"),
            "mtp.norm_hidden.weight": self.norm("mtp.pre_fc_norm_hidden.weight"),
            "mtp.norm.weight": self.norm("mtp.norm.weight"),
        } | self.layer("mtp.layers.0.", "mtp.layer.", LayerType.ATTENTION)
        return {name: replace(weight, part=Part.MTP) for name, weight in weights.items()}

    def _feed_forward(self, at: str) -> dict[str, RankWeight]:
        moe, inner = self.config.moe, self.config.intermediate_size
        if moe is None:
            return self._swiglu(at, inner)
        each = [f"{at}experts.{expert}." for expert in range(moe.num_experts)]
        gate_up = tuple(piece for expert in each for piece in self._gate_up(expert, inner))
        down = tuple(self._share(f"{expert}down_proj.weight", 1, inner) for expert in each)
        shared = self._swiglu(f"{at}shared_expert.", moe.shared_expert_intermediate_size)

        def whole(name: str, rows: int) -> RankWeight:
            return RankWeight((Slice(f"{at}{name}.weight", 0, 0, rows),), Part.ROUTER, replicated=True)

        return {
            "router.weight": whole("gate", moe.num_experts),
            "experts.gate_up_proj": RankWeight(gate_up, Part.MLP, stacked=len(each)),
            "experts.down_proj": RankWeight(down, Part.MLP, stacked=len(each)),
            **{f"shared.{name}": weight for name, weight in shared.items()},
            "shared_gate.weight": whole("shared_expert_gate", 1),
        }

    def _swiglu(self, at: str, inner: int) -> dict[str, RankWeight]:
        return {
            "gate_up_proj.weight": RankWeight(self._gate_up(at, inner), Part.MLP),
            "down_proj.weight": RankWeight((self._share(f"{at}down_proj.weight", 1, inner),), Part.MLP),
        }

    def _gate_up(self, at: str, inner: int) -> tuple[Slice, ...]:
        return tuple(self._share(f"{at}{name}_proj.weight", 0, inner) for name in ("gate", "up"))

    def _deltanet(self, source: str) -> dict[str, RankWeight]:
        config, at = self.config, f"{source}linear_attn."
        heads = config.num_value_heads
        qkv = self._query_key_value(f"{at}in_proj_qkv.weight")
        z = self._share(f"{at}in_proj_z.weight", 0, config.value_dim)
        return {
            "in_proj_qkvz.weight": RankWeight((*qkv, z), Part.DELTANET),
            "in_proj_ba.weight": RankWeight(
                tuple(self._share(f"{at}in_proj_{name}.weight", 0, heads) for name in "ba"), Part.DELTANET
            ),
            "conv_weight": RankWeight(self._query_key_value(f"{at}conv1d.weight"), Part.DELTANET, Cast.CONV),
            "A": RankWeight((self._share(f"{at}A_log", 0, heads),), Part.DELTANET, Cast.NEGATIVE_EXP),
            "dt_bias": RankWeight((self._share(f"{at}dt_bias", 0, heads),), Part.DELTANET, Cast.FP32),
            "norm.weight": self.norm(f"{at}norm.weight", config.value_head_dim, Cast.MODEL),
            "out_proj.weight": RankWeight((self._share(f"{at}out_proj.weight", 1, config.value_dim),), Part.DELTANET),
        }

    def _attention(self, source: str) -> dict[str, RankWeight]:
        config, shape, at = self.config, self.shape, f"{source}self_attn."
        d, q_proj = config.head_dim, f"{at}q_proj.weight"
        # q_proj holds, a head after the other, the head's query rows and then its gate rows.
        heads = range(self.rank * shape.num_query_heads, (self.rank + 1) * shape.num_query_heads)
        query = [Slice(q_proj, 0, 2 * head * d, (2 * head + 1) * d) for head in heads]
        gate = [Slice(q_proj, 0, (2 * head + 1) * d, (2 * head + 2) * d) for head in heads]
        # With more ranks than key/value heads, neighbouring ranks hold the same head.
        first = self.rank // shape.kv_replicas * shape.num_kv_heads * d
        key_value = [Slice(f"{at}{name}_proj.weight", 0, first, first + shape.num_kv_heads * d) for name in ("k", "v")]
        return {
            "in_proj_qgkv.weight": RankWeight((*query, *gate, *key_value), Part.ATTENTION),
            "q_norm.weight": self.norm(f"{at}q_norm.weight", d),
            "k_norm.weight": self.norm(f"{at}k_norm.weight", d),
            "o_proj.weight": RankWeight(
                (self._share(f"{at}o_proj.weight", 1, config.num_query_heads * d),), Part.ATTENTION
            ),
        }

    def _query_key_value(self, name: str) -> tuple[Slice, ...]:
        """The rank's rows of a tensor whose rows are q | k | v of all heads."""
        key, value = self.config.key_dim, self.config.value_dim
        return tuple(self._share(name, 0, size, offset) for offset, size in ((0, key), (key, key), (2 * key, value)))

    def _share(self, name: str, dim: int, size: int, offset: int = 0) -> Slice:
        """This rank's equal part of `size` elements that begin at `offset`."""
        share = size // self.tp
        return Slice(name, dim, offset + self.rank * share, offset + (self.rank + 1) * share)
