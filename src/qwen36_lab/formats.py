"""A plain checkpoint written in the formats that are published, by plain rounding: what benchmarks compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from qwen36_neuron.checkpoint.maker import write_weights
from qwen36_neuron.checkpoint.names import canonical_name, matrix_layer

Tensors = dict[str, torch.Tensor]
BLOCK = 128
GATES, VOCABULARY = ("in_proj_a", "in_proj_b"), ("lm_head", "embed_tokens")


@dataclass(frozen=True)
class Form:
    """`quantization_config`, what is stored of a matrix, and the layers that are stored as they are."""

    config: dict[str, Any] | None
    store: Callable[[torch.Tensor], Tensors]
    kept: tuple[str, ...] = GATES + VOCABULARY


def int8(group: int | None) -> Form:
    """compressed-tensors, by groups or channels."""

    def store(weight: torch.Tensor) -> Tensors:
        groups = weight.float().unflatten(1, (-1, group or weight.shape[1]))
        scale = (groups.abs().amax(-1) / 127).to(torch.bfloat16)
        codes = (groups / scale.float()[..., None]).round().clamp(-128, 127).flatten(1) + 128
        packed = codes.to(torch.uint8).view(torch.int32)
        return {"weight_packed": packed, "weight_scale": scale, "weight_shape": torch.tensor(weight.shape)}

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "group" if group else "channel"}
    if group:
        weights["group_size"] = group
    ignore = ["lm_head", "re:.*in_proj_[ab]$", "re:.*visual.*"]
    scheme = {"targets": ["Linear"], "weights": weights}
    named = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed"}
    return Form(named | {"config_groups": {"group_0": scheme}, "ignore": ignore}, store)


def fp8(vocabulary: bool) -> Form:
    """Blocks of E4M3, with or without the vocabulary."""

    def store(weight: torch.Tensor) -> Tensors:
        blocks = weight.float().unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
        scale = (blocks.abs().amax((1, 3)) / 448).to(torch.bfloat16)
        codes = (blocks / scale.float()[:, None, :, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
        return {"weight": codes.reshape(weight.shape), "weight_scale_inv": scale}

    config: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    kept = GATES if vocabulary else GATES + VOCABULARY
    config |= {"lm_head": vocabulary, "embed_tokens": vocabulary, "modules_to_not_convert": list(kept)}
    return Form(config, store, kept)


def write(source: Path, target: Path, form: Form) -> None:
    """The checkpoint in `source` in another form."""
    stored: Tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        layer = matrix_layer(canonical_name(name) or "")
        if layer is None or (layer.endswith(form.kept) and form.config is not None):
            stored[name] = tensor
        else:
            base = name.removesuffix("weight")
            stored |= {base + ending: part.contiguous() for ending, part in form.store(tensor).items()}
    target.mkdir()
    write_weights(target, stored)
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(
        json.dumps(config if form.config is None else config | {"quantization_config": form.config})
    )
