"""Checkpoints in the formats that are published, made of a plain one by the tools' own functions where they are here.

compressed-tensors comes with vLLM: it finds scales, rounds and packs. AutoRound's packing is written out here, a shift
and an addition a code, as its `QuantLinear.pack` describes it. Beside each checkpoint the same numbers lie in fp32, as
the tool itself multiplies them out: what transformers runs as the reference.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.naive_quantized import FloatQuantizationCompressor, IntQuantizationCompressor
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file

from qwen36_neuron.checkpoint.experts import apart
from qwen36_neuron.checkpoint.maker import write_weights

Tensors = dict[str, torch.Tensor]
LINEAR = r"_proj(_qkv|_z|_a|_b)?\.weight$"
GATES = r"in_proj_[ab]\.weight$"
BLOCK = 128


@dataclass(frozen=True)
class Made:
    """A checkpoint, and the same numbers in fp32."""

    folder: Path
    plain: Path


@dataclass(frozen=True)
class Form:
    """A format.

    Attributes:
        config: `quantization_config`.
        quantise: of a matrix, what is stored under its layer's name, and the fp32 that this stands for.
        wanted: an expression for the matrices that are quantised.
        kept: one for those of them that are not.
    """

    config: dict[str, Any]
    quantise: Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]
    wanted: str = LINEAR
    kept: str = field(default=rf"^model\.visual|^mtp|{GATES}")


def make(source: Path, target: Path, form: Form) -> Made:
    """Write a checkpoint in a format, and its numbers, into two folders of `target`. Experts have a matrix each."""
    made = Made(target / "quantised", target / "plain")
    stored: Tensors = {}
    plain: Tensors = {}
    for name, tensor in apart(load_file(source / "model.safetensors")).items():
        if re.search(form.wanted, name) and not re.search(form.kept, name):
            parts, plain[name] = form.quantise(tensor)
            stored |= {f"{name.removesuffix('.weight')}.{part}": held.contiguous() for part, held in parts.items()}
        else:
            stored[name], plain[name] = tensor, tensor.float()
    for folder, tensors, config in ((made.folder, stored, form.config), (made.plain, plain, None)):
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        write_weights(folder, tensors)
        configure(folder, config)
    return made


def configure(folder: Path, config: dict[str, Any] | None) -> None:
    """Put a `quantization_config` into a checkpoint's config.json."""
    file = folder / "config.json"
    content = json.loads(file.read_text())
    content.pop("quantization_config", None)
    file.write_text(json.dumps(content if config is None else content | {"quantization_config": config}))


def compressed(strategy: str, group: int | None = None, inputs: bool = False, **changes: Any) -> Form:
    """compressed-tensors' INT8, for weights alone or with rounded inputs."""
    args = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy=strategy, group_size=group)
    rounded = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=rounded if inputs else None)
    tool = IntQuantizationCompressor if inputs else PackedQuantizationCompressor

    def quantise(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        groups = weight.float().unflatten(1, (-1, group or weight.shape[1]))
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
        held = {"weight": weight, "weight_scale": scale.to(torch.bfloat16), "weight_zero_point": zero.to(torch.int8)}
        parts = tool.compress(held, scheme)
        wide = {**parts, "weight_scale": parts["weight_scale"].float()}
        return parts, tool.decompress(wide, scheme)["weight"]

    config = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if inputs else "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "version": "0.17.0",
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "transform_config": {},
        "config_groups": {"group_0": scheme.model_dump(mode="json")},
        "ignore": ["lm_head", "re:^mtp.*", "re:.*visual.*", "re:.*in_proj_[ab]$"],
    }
    return Form(config, quantise, **changes)


def published_w8a16() -> Form:
    """The recipe of published W8A16 checkpoints: groups of 128, the linear attention left out."""
    form = compressed("group", 128, kept=r"^model\.visual|^mtp|linear_attn")
    form.config["ignore"][-1] = "re:.*linear_attn.*"
    return form


def auto_round(group: int = 128) -> Form:
    """AutoRound's INT8 in GPTQ's packing, some scales negative, the gates left out by `extra_config`."""

    def quantise(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        rows, columns = weight.shape
        size = columns if group == -1 else group
        groups = weight.float().unflatten(1, (-1, size))
        scale = (groups.abs().amax(-1) / 127).half()
        scale[::3] *= -1
        codes = (groups / scale.float()[..., None]).round().clamp(-128, 127)
        plain = (codes * scale.float()[..., None]).flatten(1)
        bytes_ = (codes.flatten(1).long() + 128).t().unflatten(0, (-1, 4))  # [in / 4, 4, out]
        qweight = sum(bytes_[:, place] << 8 * place for place in range(4))
        qzeros = sum(127 << 8 * place for place in range(4))
        return {
            "qweight": as_int32(qweight),
            "qzeros": as_int32(torch.full((columns // size, rows // 4), qzeros)),
            "scales": scale.t(),
        }, plain

    config = {
        "quant_method": "auto-round",
        "packing_format": "auto_round:auto_gptq",
        "autoround_version": "0.12.3",
        "bits": 8,
        "group_size": group,
        "sym": True,
        "data_type": "int",
        "iters": 0,
        "block_name_to_quantize": "model.language_model.layers",
        "extra_config": {
            r".*linear_attn\.in_proj_a.*": {"bits": 16, "data_type": "float"},
            r".*linear_attn\.in_proj_b.*": {"bits": 16, "data_type": "float"},
            "lm_head": {"bits": 16, "data_type": "float"},
            "model.language_model.layers.0.input_layernorm": {"bits": 16, "data_type": "float"},
        },
    }
    return Form(config, quantise)


def as_int32(words: torch.Tensor | int) -> torch.Tensor:
    """int32 with the bits of numbers below 2^32."""
    assert isinstance(words, torch.Tensor)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def block_fp8(vocabulary: bool = False) -> Form:
    """The makers' FP8 in blocks; with `vocabulary`, embedding and head too."""
    args = QuantizationArgs(num_bits=8, type="float", strategy="block", block_structure=[BLOCK, BLOCK])
    scheme = QuantizationScheme(targets=["Linear"], weights=args)

    def quantise(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        rows, columns = (-(-size // BLOCK) for size in weight.shape)
        scale = torch.empty(rows, columns)
        for row in range(rows):
            for column in range(columns):
                part = weight[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK].float()
                scale[row, column], _ = calculate_qparams(part.min(), part.max(), args)
        scale = scale.to(torch.bfloat16).float()  # as published
        held = {"weight": weight.float(), "weight_scale": scale, "weight_zero_point": torch.zeros_like(scale)}
        codes = FloatQuantizationCompressor.compress(held, scheme)["weight"]
        spread = scale.repeat_interleave(BLOCK, 0)[: weight.shape[0]].repeat_interleave(BLOCK, 1)[:, : weight.shape[1]]
        return {"weight": codes, "weight_scale_inv": scale.to(torch.bfloat16)}, codes.float() * spread

    config: dict[str, Any] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": ["model.visual", "mtp.fc", "mtp.layers.0"],
    }
    layers = "model.language_model.layers"
    config["modules_to_not_convert"] += [f"{layers}.{i}.linear_attn.in_proj_{g}" for i in range(8) for g in "ab"]
    if not vocabulary:
        config["modules_to_not_convert"].append("lm_head")
        return Form(config, quantise)
    return Form(config | {"lm_head": True, "embeddings": True}, quantise, wanted=rf"{LINEAR}|embed_tokens|lm_head")


FORMS: dict[str, Callable[[], Form]] = {
    "w8a16 groups": published_w8a16,
    "w8a16 channels": lambda: compressed("channel"),
    "w8a8": lambda: compressed("channel", inputs=True),
    "auto-round": auto_round,
    "auto-round channels": lambda: auto_round(-1),
    "block fp8": block_fp8,
    "block fp8 and vocabulary": lambda: block_fp8(vocabulary=True),
}


def maker(source: Path, folders: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Makes a checkpoint in a format of `FORMS`, each once."""
    kept: dict[str, Made] = {}

    def once(name: str) -> Made:
        if name not in kept:
            kept[name] = make(source, folders.mktemp("made"), FORMS[name]())
        return kept[name]

    return once
