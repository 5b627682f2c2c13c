"""The FLOPs that the serving benchmark counts, against modules and counters that know nothing of its formula."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from qwen36_lab.serving.flops import prefill_flops
from qwen36_neuron.config import ModelConfig


@pytest.fixture(scope="module")
def transformers_model(tiny_checkpoint):
    from transformers import Qwen3_5ForConditionalGeneration

    return Qwen3_5ForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()


def test_the_linear_layers_are_all_counted(transformers_model, tiny_checkpoint):
    """Per token beyond attention and recurrence: twice the weights of every Linear of the text model but the head."""
    config = ModelConfig.from_pretrained(tiny_checkpoint)
    linear = [m for m in transformers_model.model.language_model.modules() if isinstance(m, torch.nn.Linear)]
    weights = sum(module.weight.numel() for module in linear)
    recurrence = 6 * config.num_value_heads * config.key_head_dim * config.value_head_dim
    convolution = 2 * config.conv_channels * config.conv_kernel
    heads = config.num_query_heads * config.head_dim
    n = 100
    expected = n * (2 * weights + len(config.deltanet_layers) * (recurrence + convolution))
    expected += len(config.attention_layers) * 4 * heads * sum(range(1, n + 1))
    expected += 2 * config.vocab_size * config.hidden_size
    assert prefill_flops(config, n) == expected


@pytest.mark.parametrize("tokens", [64, 256])
def test_what_runs_is_more_than_what_is_counted_but_not_by_much(transformers_model, tiny_checkpoint, tokens):
    """transformers runs the chunked form, whole attention squares and everything else that the formula leaves out."""
    config = ModelConfig.from_pretrained(tiny_checkpoint)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        transformers_model(torch.zeros(1, tokens, dtype=torch.int64), logits_to_keep=1)
    ratio = counter.get_total_flops() / prefill_flops(config, tokens)
    assert 0.95 < ratio < 1.6


def test_attention_grows_with_the_square(tiny_checkpoint):
    config = ModelConfig.from_pretrained(tiny_checkpoint)
    second = prefill_flops(config, 3) - 2 * prefill_flops(config, 2) + prefill_flops(config, 1)
    assert second == len(config.attention_layers) * 4 * config.num_query_heads * config.head_dim
