"""How much arithmetic a prefill takes by definition, and how much this machine can do."""

from __future__ import annotations

import time

import torch

from qwen36_neuron.config import ModelConfig

FORMULA = (
    "FLOPs(n tokens) = n * [2 * (weights of all linear layers, of experts those of a token alone) "
    "+ GDN layers * (6 * value heads * dk * dv + 2 * conv channels * kernel)] "
    "+ attention layers * 2 * query heads * head_dim * n * (n + 1) "
    "+ 2 * vocab * hidden. A multiplication and an addition are two. GDN is counted as its recurrence "
    "(k^T S, k v^T, q^T S), not as the chunked form that runs; attention as its causal half (q k^T and p v); "
    "the head for the last token alone; embedding, norms and activations not at all; the last layer whole, though our "
    "runtime runs most of it for the last token alone. "
    "So the fraction of the peak is that of the work asked for, not of what the processor really does."
)


def prefill_flops(config: ModelConfig, tokens: int) -> int:
    """FLOPs that a prefill of `tokens` tokens from nothing takes by definition; see FORMULA."""
    h, d = config.hidden_size, config.head_dim
    mlp = 3 * h * config.intermediate_size
    if config.moe is not None:
        moe = config.moe
        mlp = moe.num_experts_per_tok * mlp + h * (moe.num_experts + 3 * moe.shared_expert_intermediate_size + 1)
    attention = h * d * (3 * config.num_query_heads + 2 * config.num_kv_heads)
    deltanet = h * (config.conv_channels + 2 * config.value_dim + 2 * config.num_value_heads)
    num_attention, num_deltanet = len(config.attention_layers), len(config.deltanet_layers)
    linear = config.num_layers * mlp + num_attention * attention + num_deltanet * deltanet
    recurrence = 6 * config.num_value_heads * config.key_head_dim * config.value_head_dim
    convolution = 2 * config.conv_channels * config.conv_kernel
    causal = 2 * config.num_query_heads * d * tokens * (tokens + 1)
    return (
        tokens * (2 * linear + num_deltanet * (recurrence + convolution))
        + num_attention * causal
        + 2 * config.vocab_size * h
    )


def matmul_peak(size: int = 2048, repeats: int = 3) -> float:
    """fp32 FLOP/s of a square torch matmul with this process's threads: the best of `repeats`."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    torch.mm(a, b)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)
