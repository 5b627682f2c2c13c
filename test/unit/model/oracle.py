"""Transformers' Qwen3_5 and Qwen3_5Moe as the oracle, at shapes of the test's choosing, and our runtime on the same
weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen3_5ForCausalLM, Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig, Qwen3_5TextConfig

from qwen36_neuron.runtime import Output, Row, Runtime, RuntimeConfig, Step, open_runtime


@dataclass(frozen=True)
class Shape:
    """A model's shape. Head sizes are the real ones. With `experts` it is a mixture, of which a token has `top_k`."""

    name: str
    layers: int = 4
    hidden: int = 256
    query_heads: int = 4
    kv_heads: int = 2
    key_heads: int = 2
    value_heads: int = 2
    tied: bool = False
    experts: int = 0
    top_k: int = 3


SHAPES = (
    Shape("one-to-one"),
    Shape("three-values-a-key", hidden=320, query_heads=6, kv_heads=1, key_heads=1, value_heads=3),
    Shape("deep-tied", layers=8, query_heads=2, kv_heads=2, key_heads=2, value_heads=4, tied=True),
    Shape("mixture", experts=8),
)


Model = Qwen3_5ForCausalLM | Qwen3_5MoeForCausalLM


def build(folder: Path, shape: Shape) -> Model:
    """A model with transformers' own initialisation, saved in Hugging Face layout.

    Norm weights are moved away from their starting values, so that an error in them shows; so are routers, which would
    otherwise give all experts nearly the same.
    """
    torch.manual_seed(0)
    sizes = {"intermediate_size": 2 * shape.hidden}
    if shape.experts:
        sizes = {
            "num_experts": shape.experts,
            "num_experts_per_tok": shape.top_k,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 96,
        }
    config = (Qwen3_5MoeTextConfig if shape.experts else Qwen3_5TextConfig)(
        vocab_size=512,
        hidden_size=shape.hidden,
        **sizes,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.query_heads,
        num_key_value_heads=shape.kv_heads,
        linear_num_key_heads=shape.key_heads,
        linear_num_value_heads=shape.value_heads,
        tie_word_embeddings=shape.tied,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
            "mrope_section": [11, 11, 10],
            "mrope_interleaved": True,
        },
    )
    model = (Qwen3_5MoeForCausalLM if shape.experts else Qwen3_5ForCausalLM)(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            if name.endswith("mlp.gate.weight"):
                parameter.normal_()
    model.save_pretrained(folder)
    return model


def runtime(folder: Path, kernels: str, **changes: object) -> Runtime:
    """Our runtime on a saved checkpoint."""
    settings: dict[str, object] = {"max_model_len": 1024, "max_step_tokens": 4096, "num_blocks": 129, "num_slots": 4}
    return open_runtime(RuntimeConfig(model=folder, kernels=kernels, **(settings | changes)))  # type: ignore[arg-type]


def run_cuts(
    run: Runtime, tokens: list[int], cuts: list[int], *, lane: int = 1, blocks: tuple[int, ...] = tuple(range(1, 9))
) -> torch.Tensor:
    """Logits after every token of one sequence, run in pieces of the given lengths."""
    start, parts = 0, []
    for length in cuts:
        row = Row("test", lane, tokens[start : start + length], start, blocks, output=Output.ALL_LOGITS)
        logits = run.run(Step((row,))).rows[0].logits
        assert logits is not None
        parts.append(logits)
        start += length
    return torch.cat(parts)


def pieces(total: int, length: int) -> list[int]:
    """`total` in pieces of `length`, the last one shorter."""
    return [min(length, total - start) for start in range(0, total, length)]
