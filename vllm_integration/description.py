"""The model as vLLM holds it, after `--hf-overrides`: one description for the checks, the worker and the runtime."""

from __future__ import annotations

from typing import Any

import torch
import vllm.config
from transformers import PretrainedConfig
from vllm.transformers_utils.config import get_config

from qwen36_neuron.config import ModelConfig
from qwen36_neuron.devices import FP8_KV, DType
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.ops.kernels import check_shapes

from .quantization import check_quantization
from .settings import Settings

DTYPES: dict[torch.dtype, DType] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""What the runtime computes in."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


TEXT_FIELDS = _names(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers layer_types num_attention_heads num_key_value_heads
    head_dim linear_num_key_heads linear_num_value_heads linear_key_head_dim linear_value_head_dim
    linear_conv_kernel_dim rms_norm_eps max_position_embeddings tie_word_embeddings mtp_num_hidden_layers hidden_act
    attention_bias attn_output_gate eos_token_id num_experts num_experts_per_tok moe_intermediate_size
    shared_expert_intermediate_size norm_topk_prob
    """
)
"""Fields of the text model that `ModelConfig.from_dict` reads where they are set."""

ROPE_FIELDS = _names("rope_theta partial_rotary_factor mrope_section rope_type")
"""Fields of `rope_parameters` that older configurations have beside it."""

READ_BY_VLLM = _names("architectures model_type bos_token_id pad_token_id")
"""Fields that vLLM reads, and we do not."""

READ_EARLY = _names("max_position_embeddings vocab_size")
"""Fields of the text model that vLLM has read, from where they belong, before an override is looked at here."""


def describe(model: vllm.config.ModelConfig) -> ModelConfig:
    """The description of the model. Raises ConfigError naming a field that cannot be used."""
    return ModelConfig.from_dict(model.hf_config.to_dict())


def check_model(held: vllm.config.ModelConfig, settings: Settings) -> ModelConfig:
    """The model's description, overrides settled. Raises ConfigError if it cannot be run as the settings say."""
    settle_overrides(held)
    model = describe(held)
    model.rank(settings.tp_degree)
    if settings.kernels == "interpreter":
        check_shapes(settings.kernels, model)
    check_dtype(held.dtype)
    if settings.device == "cpu" and settings.kernels == "fused" and held.dtype != torch.float32:
        remedy = "Use --dtype float32, or kernels=torch"
        raise ConfigError("additional_config.kernels", "fused", "computes in float32 alone", remedy)
    check_quantization(held, settings)
    return model


def settle_overrides(model: vllm.config.ModelConfig) -> None:
    """Move every override to where it is read, in place; refuse one that nothing reads.

    vLLM sets a field where its user says. In a checkpoint whose text model is nested, a field of the text model may be
    given outside of it; and the base of the rotary embedding has been moved into `rope_parameters` by then. What has
    changed is found by comparing with the configuration without overrides, so that a callable is treated as a
    dictionary is.

    Raises:
        ConfigError: an override is of a field that the model does not have, or contradicts another one.
    """
    if not model.hf_overrides:
        return
    plain = get_config(
        model.hf_config_path or model.model,
        model.trust_remote_code,
        model.revision,
        model.code_revision,
        model.config_format,
        token=model.hf_token,
    )
    held, text = model.hf_config, model.hf_config.get_text_config()
    inside = _changed(plain.get_text_config(), text)
    if text is not held:
        outside = _changed(plain, held)
        for name in ("text_config", "rope_parameters" if ROPE_FIELDS & set(outside) else ""):
            outside.pop(name, None)  # the latter is made by transformers of the former
        for name, value in outside.items():
            if name in READ_BY_VLLM:
                continue
            if name in READ_EARLY:
                remedy = f"""Use --hf-overrides '{{"text_config": {{"{name}": {value!r}}}}}'"""
                raise ConfigError(f"hf_overrides.{name}", value, "belongs to the text model", remedy)
            if inside.get(name, value) != value:
                problem = f"contradicts hf_overrides.text_config.{name}={inside[name]!r}"
                raise ConfigError(f"hf_overrides.{name}", value, problem, "Give one of the two")
            inside[name] = value
    for name, value in inside.items():
        _settle(text, name, value)


def _settle(text: PretrainedConfig, name: str, value: Any) -> None:
    label = f"hf_overrides.{name}"
    if name in READ_BY_VLLM:
        return
    if name in ROPE_FIELDS:
        text.rope_parameters = {**(text.rope_parameters or {}), name: value}
    elif name in ("rope_parameters", "rope_scaling"):
        if not isinstance(value, dict):
            raise ConfigError(label, value, "must be an object", """Use {"rope_theta": 10000000}""")
        text.rope_parameters = {**(text.rope_parameters or {}), **value}
    elif name == "full_attention_interval":
        raise ConfigError(label, value, "the types of the layers are listed one by one", "Override layer_types")
    elif name in TEXT_FIELDS:
        setattr(text, name, value)
    else:
        raise ConfigError(label, value, "is not read: the model has no such field", "Remove it")


def _changed(plain: PretrainedConfig, held: PretrainedConfig) -> dict[str, Any]:
    """The fields that the second configuration has otherwise, with its values. Nested ones are fields like others."""
    before, after = plain.to_dict(), held.to_dict()
    return {name: value for name, value in after.items() if name not in before or before[name] != value}


def kv_element(cache_dtype: str, dtype: torch.dtype) -> int:
    """Bytes of a key's or value's number, `cache_dtype` being settled."""
    return 1 if cache_dtype in FP8_KV else dtype.itemsize


def check_dtype(dtype: torch.dtype) -> None:
    """Raises ConfigError if the runtime does not compute in `dtype`."""
    if dtype not in DTYPES:
        raise ConfigError("dtype", dtype, "is not implemented", "Use --dtype float32 or --dtype bfloat16")
