"""The tensors of a Hugging Face Qwen3.5/3.6 checkpoint: their names and shapes.

Names here are canonical: those of the text model without a prefix (`layers.0.mlp.up_proj.weight`), the head
(`lm_head.weight`) and the multi-token-prediction layer (`mtp.fc.weight`). A mixture's experts have a name each
(`layers.0.mlp.experts.3.up_proj.weight`), whichever way a checkpoint holds them: `experts` says which.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..config import LayerType, ModelConfig

Shapes = dict[str, tuple[int, ...]]

TEXT_PREFIXES = ("model.language_model.", "model.")
"""Of conditional-generation and of text-only checkpoints, as they are published."""

WRAPPERS = ("model.", "language_model.")
"""What names of the text model are wrapped in, in either order, once, twice or not at all."""

VISION_PREFIX = "model.visual."
MTP_PREFIX = "mtp."
HEAD = "lm_head.weight"

MATRICES = ("_proj", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "mtp.fc", "embed_tokens", "lm_head")
"""Ends of the names of layers whose weight is a matrix [out, in]."""


KV_SCALES = {
    r"(?:attn\.)?([kvq])_scale": r"\1",
    r"(?:attn\.)?kv_scale": "kv",
    r"[kvq]_proj\.([kvq])_scale": r"\1",
    r"qk(?:qk)?v_proj\.([kv])_scale": r"\1",
    r"([kvq])_proj\.output_scale": r"\1",
    r"([kv])_cache\.scale": r"\1",
    r"q\.scale": "q",
    r"(?:attn\.)?prob_scale|prob_output_scale": "prob",
    r"(?:attn\.)?([kvq]_zero_point)": r"\1",
}
"""Names of scales of keys and values, behind `self_attn.`, that vLLM's loaders take, and which each is: of compressed-
tensors, AutoFP8, ModelOpt, Quark and vLLM itself (`QuantizationConfig.get_cache_scale_mapper` and its overrides)."""


class KVScale(NamedTuple):
    """Which scale a tensor is.

    Attributes:
        layer: `layers.N` or `mtp.layers.N`.
        kind: k, v, kv for both, k_zero_point, v_zero_point; others, q, prob and q_zero_point, are for attention that is
            computed in FP8.
    """

    layer: str
    kind: str


def kv_scale(name: str) -> KVScale | None:
    """Which scale of keys or values a tensor of this canonical name is; None if it is none."""
    layer, found, rest = name.partition(".self_attn.")
    if not found or not re.fullmatch(r"(?:mtp\.)?layers\.\d+", layer):
        return None
    for pattern, kind in KV_SCALES.items():
        if matched := re.fullmatch(pattern, rest):
            return KVScale(layer, matched.expand(kind))
    return None


def canonical_name(name: str) -> str | None:
    """The canonical name of a checkpoint tensor; None for one that the text model does not use.

    That is the vision tower, and the inverse frequencies of the rotary embedding, which old exports hold and which
    follow from the configuration.
    """
    while wrapper := next((wrapper for wrapper in WRAPPERS if name.startswith(wrapper)), ""):
        name = name.removeprefix(wrapper)
    return None if name.startswith("visual.") or name.endswith("rotary_emb.inv_freq") else name


def matrix_layer(name: str) -> str | None:
    """The canonical name of the layer that a tensor of this canonical name is the matrix of; None if it is of none."""
    layer = name.removesuffix(".weight")
    return layer if layer != name and layer.endswith(MATRICES) else None


def text_shapes(config: ModelConfig) -> Shapes:
    """Shapes of the text model's tensors, without the multi-token-prediction layer, by canonical name."""
    shapes: Shapes = {"embed_tokens.weight": (config.vocab_size, config.hidden_size)}
    for index, kind in enumerate(config.layer_types):
        mixer = _attention(config) if kind is LayerType.ATTENTION else _deltanet(config)
        shapes |= _under(f"layers.{index}.", mixer | _around_mixer(config))
    shapes["norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, config.hidden_size)
    return shapes


def mtp_shapes(config: ModelConfig) -> Shapes:
    """Shapes of the multi-token-prediction layer's tensors; empty when the model has none."""
    if not config.num_mtp_layers:
        return {}
    h = config.hidden_size
    shapes: Shapes = {
        "mtp.fc.weight": (h, 2 * h),
        "mtp.pre_fc_norm_embedding.weight": (h,),
        "mtp.pre_fc_norm_hidden.weight": (h,),
        "mtp.norm.weight": (h,),
    }
    for index in range(config.num_mtp_layers):
        shapes |= _under(f"mtp.layers.{index}.", _attention(config) | _around_mixer(config))
    return shapes


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def _around_mixer(config: ModelConfig) -> Shapes:
    h, moe = config.hidden_size, config.moe
    norms: Shapes = {"input_layernorm.weight": (h,), "post_attention_layernorm.weight": (h,)}
    if moe is None:
        return norms | _swiglu("mlp.", h, config.intermediate_size)
    shapes = norms | {"mlp.gate.weight": (moe.num_experts, h), "mlp.shared_expert_gate.weight": (1, h)}
    for expert in range(moe.num_experts):
        shapes |= _swiglu(f"mlp.experts.{expert}.", h, moe.moe_intermediate_size)
    return shapes | _swiglu("mlp.shared_expert.", h, moe.shared_expert_intermediate_size)


def _swiglu(at: str, hidden: int, inner: int) -> Shapes:
    return {
        f"{at}gate_proj.weight": (inner, hidden),
        f"{at}up_proj.weight": (inner, hidden),
        f"{at}down_proj.weight": (hidden, inner),
    }


def _attention(config: ModelConfig) -> Shapes:
    h, d = config.hidden_size, config.head_dim
    return _under(
        "self_attn.",
        {
            "q_proj.weight": (config.num_query_heads * 2 * d, h),
            "k_proj.weight": (config.num_kv_heads * d, h),
            "v_proj.weight": (config.num_kv_heads * d, h),
            "o_proj.weight": (h, config.num_query_heads * d),
            "q_norm.weight": (d,),
            "k_norm.weight": (d,),
        },
    )


def _deltanet(config: ModelConfig) -> Shapes:
    h, heads = config.hidden_size, config.num_value_heads
    return _under(
        "linear_attn.",
        {
            "in_proj_qkv.weight": (config.conv_channels, h),
            "in_proj_z.weight": (config.value_dim, h),
            "in_proj_b.weight": (heads, h),
            "in_proj_a.weight": (heads, h),
            "conv1d.weight": (config.conv_channels, 1, config.conv_kernel),
            "A_log": (heads,),
            "dt_bias": (heads,),
            "norm.weight": (config.value_head_dim,),
            "out_proj.weight": (h, config.value_dim),
        },
    )
