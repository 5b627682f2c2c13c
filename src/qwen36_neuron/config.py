"""What a checkpoint's `config.json` says, and what one tensor-parallel rank gets of it.

`ModelConfig` is read straight from the JSON (nested `text_config` or flat), so that it does not depend on which
transformers release knows `qwen3_5`. Every derived size that other rooms need is a property here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from .errors import ConfigError, UnsupportedModelError
from .fields import Fields
from .moe import MoEConfig, read_moe
from .rope import RopeConfig, read_rope

BLOCK_SIZE = 64
"""Tokens in a KV block, in a DeltaNet chunk and between two possible state checkpoints."""

DENSE_TYPES = ("qwen3_5", "qwen3_5_text")
MOE_TYPES = ("qwen3_5_moe", "qwen3_5_moe_text")
STRETCH = (
    "Lower it; or stretch the model's positions by YaRN, in config.json or by --hf-overrides '{\"text_config\": "
    '{"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 262144, ...}}}\'; or '
    "set VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 to go where it was never trained"
)
"""What to do about sequences that are longer than a model's own."""

STATE_BYTES = 4  # the recurrent state is always fp32


class LayerType(StrEnum):
    """The mixer of a decoder layer, by its name in `layer_types`."""

    DELTANET = "linear_attention"
    ATTENTION = "full_attention"


@dataclass(frozen=True, slots=True)
class RankShape:
    """The share of one tensor-parallel rank.

    Key/value heads are replicated when there are more ranks than heads (`kv_replicas` ranks hold the same one).
    """

    tp: int
    num_query_heads: int
    num_kv_heads: int
    kv_replicas: int
    num_key_heads: int
    num_value_heads: int
    conv_channels: int
    intermediate_size: int
    vocab_size: int
    shared_intermediate_size: int = 0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A validated Qwen3.5/3.6 text model description. Sizes are in elements unless the name says bytes.

    Attributes:
        intermediate_size: inner channels of the feed-forward block; of a mixture, those of one routed expert.
        moe: what makes the model a mixture of experts; None for a dense one.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    layer_types: tuple[LayerType, ...]
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    num_key_heads: int
    num_value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    num_mtp_layers: int
    eos_token_ids: tuple[int, ...]
    moe: MoEConfig | None = None

    # ---- reading -----------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> ModelConfig:
        """Read `config.json` from a checkpoint folder, or from the file itself.

        Args:
            overrides: fields to replace, as vLLM's `--hf-overrides` has them: those of an object one by one.
        Raises:
            ConfigError: the file is missing, is not JSON, or holds a value that cannot be used.
        """
        file = Path(path)
        if file.is_dir():
            file = file / "config.json"
        if not file.is_file():
            raise ConfigError(
                "model", str(path), "no config.json there", "Give a checkpoint folder in Hugging Face layout"
            )
        raw = _read_json(file)
        # The tokens that end an answer are published beside the model's own, which end a training document.
        generation = file.with_name("generation_config.json")
        ends = _read_json(generation).get("eos_token_id") if generation.is_file() else None
        raw = raw if ends is None else {**raw, "eos_token_id": ends}
        return cls.from_dict(_overridden(raw, overrides or {}))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Build from the parsed JSON, nested (`text_config`) or flat.

        Raises:
            UnsupportedModelError: another model family.
            ConfigError: a field is missing or has a value that cannot be used.
        """
        nested = raw.get("text_config")
        if nested is not None and not isinstance(nested, Mapping):
            raise ConfigError("text_config", nested, "must be an object", "Use the published config.json")
        text: dict[str, Any] = dict(nested) if nested is not None else dict(raw)
        read = Fields(text)
        model_type = str(raw.get("model_type", text.get("model_type")))
        if model_type not in DENSE_TYPES + MOE_TYPES:
            raise UnsupportedModelError(
                "model_type",
                model_type,
                "is not a Qwen3.5/3.6 model",
                f"Supported: {', '.join(DENSE_TYPES + MOE_TYPES)}",
            )
        num_layers = read.size("num_hidden_layers")
        moe = read_moe(read) if model_type in MOE_TYPES else None
        positions = read.size("max_position_embeddings", 32768)
        config = cls(
            model_type=model_type,
            vocab_size=read.size("vocab_size"),
            hidden_size=read.size("hidden_size"),
            intermediate_size=read.size("moe_intermediate_size" if moe else "intermediate_size"),
            num_layers=num_layers,
            layer_types=_read_layer_types(read, num_layers),
            num_query_heads=read.size("num_attention_heads"),
            num_kv_heads=read.size("num_key_value_heads"),
            head_dim=read.size("head_dim", 256),
            num_key_heads=read.size("linear_num_key_heads"),
            num_value_heads=read.size("linear_num_value_heads"),
            key_head_dim=read.size("linear_key_head_dim", 128),
            value_head_dim=read.size("linear_value_head_dim", 128),
            conv_kernel=read.size("linear_conv_kernel_dim", 4),
            rms_norm_eps=read.number("rms_norm_eps", 1e-6),
            rope=read_rope(read, positions),
            max_position_embeddings=positions,
            tie_word_embeddings=_read_tied(text, raw),
            num_mtp_layers=read.size("mtp_num_hidden_layers", 0, minimum=0),
            eos_token_ids=_read_eos(raw, text),
            moe=moe,
        )
        config._validate(text)
        return config

    def _validate(self, text: Mapping[str, Any]) -> None:
        for field, expected in (("hidden_act", "silu"), ("attention_bias", False), ("attn_output_gate", True)):
            if text.get(field, expected) != expected:
                raise ConfigError(field, text[field], f"only {expected!r} is implemented", "Use a published checkpoint")
        if self.num_query_heads % self.num_kv_heads:
            raise ConfigError(
                "num_attention_heads",
                self.num_query_heads,
                f"must be a multiple of num_key_value_heads={self.num_kv_heads}",
                "Correct config.json",
            )
        if self.num_value_heads % self.num_key_heads:
            raise ConfigError(
                "linear_num_value_heads",
                self.num_value_heads,
                f"must be a multiple of linear_num_key_heads={self.num_key_heads}",
                "Correct config.json",
            )
        if self.rope.dim > self.head_dim or self.rope.dim % 2:
            raise ConfigError(
                "partial_rotary_factor",
                self.rope.dim / self.head_dim,
                f"gives {self.rope.dim} rotary dimensions of {self.head_dim}",
                "It must give an even number of at most head_dim",
            )
        if self.conv_kernel < 2:
            raise ConfigError("linear_conv_kernel_dim", self.conv_kernel, "must be at least 2", "Correct config.json")

    # ---- derived sizes -----------------------------------------------------------------------------------------

    @property
    def max_positions(self) -> int:
        """Tokens that a sequence may have, as vLLM derives them: with YaRN the original ones times the factor."""
        yarn = self.rope.yarn
        return self.max_position_embeddings if yarn is None else int(yarn.original_positions * yarn.factor)

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Indices of the layers that hold KV."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind is LayerType.ATTENTION)

    @property
    def deltanet_layers(self) -> tuple[int, ...]:
        """Indices of the layers that hold a recurrent state."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind is LayerType.DELTANET)

    @property
    def key_dim(self) -> int:
        """DeltaNet key channels over all heads."""
        return self.num_key_heads * self.key_head_dim

    @property
    def value_dim(self) -> int:
        """DeltaNet value channels over all heads."""
        return self.num_value_heads * self.value_head_dim

    @property
    def conv_channels(self) -> int:
        """Channels of the causal convolution: q, k and v together."""
        return 2 * self.key_dim + self.value_dim

    def check_length(self, tokens: int, allow_long: bool = False) -> None:
        """Raises ConfigError for sequences longer than the model's own, which vLLM asks consent for.

        Args:
            allow_long: that consent: positions beyond `max_positions` were never trained.
        """
        if tokens > self.max_positions and not allow_long:
            raise ConfigError("max_model_len", tokens, f"the model was made for {self.max_positions} tokens", STRETCH)

    def kv_bytes_per_token(self, element_bytes: int = 2, draft_layer: bool = False) -> int:
        """Bytes of one token's keys and values in all attention layers, all ranks, without replication."""
        return (len(self.attention_layers) + draft_layer) * 2 * self.num_kv_heads * self.head_dim * element_bytes

    def state_bytes_per_lane(self, tp: int = 1, conv_element_bytes: int = 2) -> int:
        """Bytes of running state of one sequence on one rank: fp32 recurrent state and the convolution window."""
        rank = self.rank(tp)
        recurrent = rank.num_value_heads * self.key_head_dim * self.value_head_dim * STATE_BYTES
        window = rank.conv_channels * (self.conv_kernel - 1) * conv_element_bytes
        return len(self.deltanet_layers) * (recurrent + window)

    def num_parameters(self, include_mtp: bool = False) -> int:
        """Parameters of the text model, all experts included."""
        return self._parameters(1 if self.moe is None else self.moe.num_experts, include_mtp)

    def num_active_parameters(self) -> int:
        """Of these, without the draft layer, those that one token passes through: its own experts alone."""
        return self._parameters(1 if self.moe is None else self.moe.num_experts_per_tok)

    def _parameters(self, experts: int, include_mtp: bool = False) -> int:
        h, d = self.hidden_size, self.head_dim
        mlp = experts * 3 * h * self.intermediate_size
        if self.moe is not None:  # the router, the shared expert and its gate
            mlp += h * (self.moe.num_experts + 3 * self.moe.shared_expert_intermediate_size + 1)
        attention = h * d * (2 * self.num_query_heads + 2 * self.num_kv_heads) + self.num_query_heads * d * h + 2 * d
        deltanet = (
            h * (self.conv_channels + self.value_dim + 2 * self.num_value_heads)
            + self.conv_channels * self.conv_kernel
            + 2 * self.num_value_heads
            + self.value_head_dim
            + self.value_dim * h
        )
        layers = len(self.attention_layers) * attention + len(self.deltanet_layers) * deltanet
        layers += self.num_layers * (mlp + 2 * h)
        embeddings = self.vocab_size * h * (1 if self.tie_word_embeddings else 2)
        mtp = self.num_mtp_layers * (attention + mlp + 2 * h) + (2 * h * h + 3 * h if self.num_mtp_layers else 0)
        return layers + embeddings + h + (mtp if include_mtp else 0)

    def rank(self, tp: int) -> RankShape:
        """The share of one of `tp` ranks.

        Raises:
            ConfigError: a size does not divide by `tp`.
        """
        if tp < 1:
            raise ConfigError("tp_degree", tp, "must be at least 1", "Use 4 on a trn2.3xlarge")
        shared = 0 if self.moe is None else self.moe.shared_expert_intermediate_size
        for field, value in (
            ("num_attention_heads", self.num_query_heads),
            ("linear_num_key_heads", self.num_key_heads),
            ("linear_num_value_heads", self.num_value_heads),
            ("moe_intermediate_size" if self.moe else "intermediate_size", self.intermediate_size),
            ("shared_expert_intermediate_size", shared),
            ("vocab_size", self.vocab_size),
        ):
            if value % tp:
                raise ConfigError("tp_degree", tp, f"{field}={value} does not divide by it", "Use a smaller tp_degree")
        if max(tp, self.num_kv_heads) % min(tp, self.num_kv_heads):
            raise ConfigError(
                "tp_degree",
                tp,
                f"num_key_value_heads={self.num_kv_heads} can be neither split nor replicated evenly",
                "Use a power of two",
            )
        return RankShape(
            tp=tp,
            num_query_heads=self.num_query_heads // tp,
            num_kv_heads=max(1, self.num_kv_heads // tp),
            kv_replicas=max(1, tp // self.num_kv_heads),
            num_key_heads=self.num_key_heads // tp,
            num_value_heads=self.num_value_heads // tp,
            conv_channels=self.conv_channels // tp,
            intermediate_size=self.intermediate_size // tp,
            vocab_size=self.vocab_size // tp,
            shared_intermediate_size=shared // tp,
        )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(file.name, str(file), f"is not JSON ({error})", "Download the checkpoint again") from error
    if not isinstance(content, dict):
        raise ConfigError(file.name, type(content).__name__, "must hold an object", "Download the checkpoint again")
    return content


def _overridden(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(raw)
    for name, value in overrides.items():
        old = result.get(name)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[name] = _overridden(old, value) if both else value  # type: ignore[arg-type]
    return result


def _read_layer_types(read: Fields, num_layers: int) -> tuple[LayerType, ...]:
    names = read.raw.get("layer_types")
    if names is None:
        interval = read.size("full_attention_interval", 4)
        names = [(LayerType.DELTANET if (i + 1) % interval else LayerType.ATTENTION).value for i in range(num_layers)]
    if not isinstance(names, list | tuple):
        raise ConfigError("layer_types", names, "must be a list of layer types", "Correct config.json")
    known = [kind.value for kind in LayerType]
    for name in names:
        if name not in known:
            raise ConfigError("layer_types", name, "is not a known layer type", f"Known: {', '.join(known)}")
    if len(names) != num_layers:
        raise ConfigError(
            "layer_types", f"{len(names)} entries", f"num_hidden_layers is {num_layers}", "Make the two agree"
        )
    return tuple(LayerType(name) for name in names)


def _read_tied(text: Mapping[str, Any], raw: Mapping[str, Any]) -> bool:
    """Published beside text_config, within it, or both; transformers' two classes look at one place each.

    A head of its own in the checkpoint is used in any case, so saying it in one place is enough.
    """
    inner, outer = (Fields(part).flag("tie_word_embeddings", False) for part in (text, raw))
    return inner or outer


def _read_eos(raw: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[int, ...]:
    value = raw.get("eos_token_id", text.get("eos_token_id"))
    if value is None:
        return ()
    ids = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(type(token) is int and token >= 0 for token in ids):
        raise ConfigError("eos_token_id", value, "must be a token id or a list of them", "Correct config.json")
    return ids
