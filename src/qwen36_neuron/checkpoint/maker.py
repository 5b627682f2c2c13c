"""Makes small checkpoints with random weights, in exact Hugging Face layout.

The same spec always gives the same bytes: every tensor has its own random stream, named by the seed and the tensor, so
adding a layer or tying the head leaves the other tensors as they were.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Qwen3_5Tokenizer

from ..config import ModelConfig
from ..errors import ConfigError
from .corpus import default_corpus
from .experts import joined
from .names import HEAD, TEXT_PREFIXES, VISION_PREFIX, Shapes, mtp_shapes, text_shapes
from .tokenizer import END_OF_TEXT, END_OF_TURN, build_tokenizer

DType = Literal["float32", "bfloat16", "float16"]
INITIALIZER_RANGE = 0.02
VISION_HIDDEN, VISION_INTERMEDIATE, VISION_POSITIONS = 32, 64, 16


@dataclass(frozen=True, slots=True)
class CheckpointSpec:
    """What to make. Head sizes are always those of the published models: 128 in DeltaNet, 256 in attention.

    Attributes:
        num_layers: decoder layers; every fourth is attention, the others DeltaNet.
        intermediate_size: inner channels of the feed-forward block; of a mixture, those of one routed expert.
        vocab_size: tokens, special ones included.
        num_mtp_layers: 1 to add the multi-token-prediction layer.
        dtype: of the stored weights.
        max_shard_bytes: split the weights into files of at most this size, with an index; None for one file.
        seed: of the weights.
        num_experts: routed experts of a layer, of which each token has `num_experts_per_tok`; 0 for a dense model.
        shared_intermediate_size: inner channels of the expert that every token has.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_query_heads: int
    num_kv_heads: int
    num_key_heads: int
    num_value_heads: int
    vocab_size: int = 4096
    num_mtp_layers: int = 0
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 32768
    dtype: DType = "bfloat16"
    max_shard_bytes: int | None = None
    seed: int = 0
    num_experts: int = 0
    num_experts_per_tok: int = 0
    shared_intermediate_size: int = 0


PRESETS = {
    "tiny": CheckpointSpec(
        num_layers=4,
        hidden_size=256,
        intermediate_size=512,
        num_query_heads=2,
        num_kv_heads=1,
        num_key_heads=1,
        num_value_heads=3,
    ),
    "demo": CheckpointSpec(
        num_layers=8,
        hidden_size=256,
        intermediate_size=768,
        num_query_heads=4,
        num_kv_heads=2,
        num_key_heads=2,
        num_value_heads=6,
    ),
    "tiny-moe": CheckpointSpec(
        num_layers=4,
        hidden_size=256,
        intermediate_size=64,
        num_query_heads=2,
        num_kv_heads=1,
        num_key_heads=1,
        num_value_heads=3,
        num_experts=8,
        num_experts_per_tok=2,
        shared_intermediate_size=64,
    ),
}
"""`tiny` for fast tests (5 M parameters); `demo` for the server and the benchmarks (13 M),
`tiny-moe` a mixture of experts (6 M)."""


def make_checkpoint(folder: str | Path, spec: CheckpointSpec, corpus: Iterable[str] | None = None) -> Path:
    """Write the checkpoint of `spec` into `folder`, whole or not at all, and return the folder.

    Args:
        folder: a new or empty folder.
        corpus: texts to train the tokenizer on; the built-in ones by default.

    Raises:
        ConfigError: the folder holds files, the sizes do not fit each other, or the corpus cannot fill the vocabulary.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("folder", str(folder), "is not empty", "Give a new folder, or remove this one first")
    tokenizer = build_tokenizer(default_corpus() if corpus is None else corpus, spec.vocab_size)
    raw = config_json(spec, tokenizer)
    config = ModelConfig.from_dict(raw)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
        unfinished = Path(made) / folder.name
        unfinished.mkdir()
        tokenizer.save_pretrained(unfinished)
        _write_json(unfinished / "config.json", raw)
        _write_json(unfinished / "generation_config.json", generation_config_json(tokenizer))
        write_weights(unfinished, random_weights(config, spec), spec.max_shard_bytes)
        unfinished.replace(folder)
    return folder


def config_json(spec: CheckpointSpec, tokenizer: Qwen3_5Tokenizer) -> dict[str, Any]:
    """The content of `config.json`, nested as published."""
    ids = tokenizer.get_vocab()
    pattern = ["full_attention" if i % 4 == 3 else "linear_attention" for i in range(spec.num_layers)]
    family, name = ("qwen3_5_moe", "Qwen3_5Moe") if spec.num_experts else ("qwen3_5", "Qwen3_5")
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": family,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": spec.tie_word_embeddings,
        "text_config": {
            "model_type": f"{family}_text",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_output_gate": True,
            "bos_token_id": ids[END_OF_TEXT],
            "dtype": spec.dtype,
            "eos_token_id": ids[END_OF_TEXT],
            "full_attention_interval": 4,
            "head_dim": 256,
            "hidden_act": "silu",
            "hidden_size": spec.hidden_size,
            "initializer_range": INITIALIZER_RANGE,
            **_feed_forward(spec),
            "layer_types": pattern,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_num_key_heads": spec.num_key_heads,
            "linear_num_value_heads": spec.num_value_heads,
            "linear_value_head_dim": 128,
            "mamba_ssm_dtype": "float32",
            "max_position_embeddings": spec.max_position_embeddings,
            "mtp_num_hidden_layers": spec.num_mtp_layers,
            "mtp_use_dedicated_embeddings": False,
            "num_attention_heads": spec.num_query_heads,
            "num_hidden_layers": spec.num_layers,
            "num_key_value_heads": spec.num_kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "mrope_interleaved": True,
                "mrope_section": [11, 11, 10],
                "partial_rotary_factor": 0.25,
                "rope_theta": 10000000,
                "rope_type": "default",
            },
            "tie_word_embeddings": spec.tie_word_embeddings,
            "use_cache": True,
            "vocab_size": spec.vocab_size,
        },
        "vision_config": {
            "model_type": f"{family}_vision",
            "depth": 1,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": VISION_HIDDEN,
            "in_channels": 3,
            "intermediate_size": VISION_INTERMEDIATE,
            "num_heads": 2,
            "num_position_embeddings": VISION_POSITIONS,
            "out_hidden_size": spec.hidden_size,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


def _feed_forward(spec: CheckpointSpec) -> dict[str, Any]:
    if not spec.num_experts:
        return {"intermediate_size": spec.intermediate_size}
    return {
        "moe_intermediate_size": spec.intermediate_size,
        "num_experts": spec.num_experts,
        "num_experts_per_tok": spec.num_experts_per_tok,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": spec.shared_intermediate_size,
    }


def generation_config_json(tokenizer: Qwen3_5Tokenizer) -> dict[str, Any]:
    """The content of `generation_config.json`: the sampling published for the thinking mode."""
    ids = tokenizer.get_vocab()
    return {
        "bos_token_id": ids[END_OF_TEXT],
        "do_sample": True,
        "eos_token_id": [ids[END_OF_TURN], ids[END_OF_TEXT]],
        "pad_token_id": ids[END_OF_TEXT],
        "temperature": 1.0,
        "top_k": 20,
        "top_p": 0.95,
    }


def random_weights(config: ModelConfig, spec: CheckpointSpec) -> dict[str, torch.Tensor]:
    """Random tensors of the whole checkpoint by published name, in `spec.dtype`; all experts in one tensor."""
    dtype: torch.dtype = getattr(torch, spec.dtype)
    text = {(name if name == HEAD else TEXT_PREFIXES[0] + name): shape for name, shape in text_shapes(config).items()}
    shapes = text | mtp_shapes(config) | vision_shapes(spec.hidden_size)
    made = {name: torch.from_numpy(_initial(name, shape, spec.seed)).to(dtype) for name, shape in shapes.items()}
    return joined(made)


def vision_shapes(out_hidden_size: int) -> Shapes:
    """Shapes of a vision tower of one block: there so that the layout is whole; the text model does not read it."""
    h, i, merged = VISION_HIDDEN, VISION_INTERMEDIATE, 4 * VISION_HIDDEN
    linears = {
        "blocks.0.attn.qkv": (3 * h, h),
        "blocks.0.attn.proj": (h, h),
        "blocks.0.mlp.linear_fc1": (i, h),
        "blocks.0.mlp.linear_fc2": (h, i),
        "merger.linear_fc1": (merged, merged),
        "merger.linear_fc2": (out_hidden_size, merged),
        "patch_embed.proj": (h, 3, 2, 16, 16),
    }
    shapes: Shapes = {"pos_embed.weight": (VISION_POSITIONS, h)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in ("blocks.0.norm1", "blocks.0.norm2", "merger.norm"):
        shapes |= {f"{name}.weight": (h,), f"{name}.bias": (h,)}
    return {VISION_PREFIX + name: shape for name, shape in shapes.items()}


def write_weights(folder: Path, tensors: Mapping[str, torch.Tensor], max_shard_bytes: int | None = None) -> None:
    """Write `model.safetensors`, or numbered files of at most `max_shard_bytes` (one tensor at least) with an index."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    filled = total = 0
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        if shards[-1] and max_shard_bytes is not None and filled + tensor.nbytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
        total += tensor.nbytes
    if max_shard_bytes is None:
        _save(shards[0], folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _save(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors lets only the owner read


def _initial(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """fp32 values that keep activations near unit size and let greedy decoding wander.

    Matrices are N(0, 1/fan_in), the head N(0, INITIALIZER_RANGE^2) as published. Norms are off their neutral value, so
    that leaving one out shows. The decay is as Mamba and DeltaNet start it: A log-uniform in [1, 16] and
    softplus(dt_bias) log-uniform in [0.001, 0.1].
    """
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith("A_log"):
        return random.uniform(0.0, math.log(16.0), shape).astype(np.float32)
    if name.endswith("dt_bias"):
        dt = np.exp(random.uniform(math.log(0.001), math.log(0.1), shape))
        return (dt + np.log(-np.expm1(-dt))).astype(np.float32)
    normal = random.standard_normal(shape, dtype=np.float32)
    if name == HEAD:
        return np.float32(INITIALIZER_RANGE) * normal
    if name.endswith("embed_tokens.weight"):
        return np.float32(0.1) * normal
    if len(shape) > 1:
        return normal / np.float32(math.sqrt(math.prod(shape[1:])))
    centre = 1.0 if name.endswith("linear_attn.norm.weight") or name.startswith(VISION_PREFIX) else 0.0
    return np.float32(centre) + np.float32(0.1) * normal


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
