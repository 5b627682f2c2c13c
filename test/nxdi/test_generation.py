"""The application driven by NxDI's own generation adapter, which its demo tool uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from neuronx_distributed_inference.utils.hf_adapter import HuggingFaceGenerationAdapter

from qwen36_neuron.errors import ConfigError
from qwen36_neuron.runtime import Row, Step


def greedy(cpu: Any, prompt: list[int], count: int, lane: int) -> list[int]:
    """The CPU runtime's tokens."""
    blocks, start, found = range(8 * lane, 8 * lane + 8), 0, list(prompt)
    for _ in range(count):
        (result,) = cpu.run(Step((Row("greedy", lane, found[start:], start, blocks),))).rows
        start = len(found)
        found += result.tokens
    return found[len(prompt) :]


def test_prompts_of_different_lengths(load: Callable[..., Any], cpu: Any, tokens: list[int]) -> None:
    app = load().app
    prompts = [tokens[:150], tokens[200:333], tokens[400:402]]
    width = max(map(len, prompts))
    ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts])
    mask = torch.tensor([[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in prompts])
    adapter = HuggingFaceGenerationAdapter(app)
    for _ in range(2):  # the second time on lanes that have been used
        made = adapter.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
        for lane, (prompt, row) in enumerate(zip(prompts, made, strict=True), start=1):
            assert row[width:].tolist() == greedy(cpu, prompt, 12, lane)


def test_too_few_blocks_to_give_each_sequence_its_own(load: Callable[..., Any]) -> None:
    app = load(num_blocks=32).app
    with pytest.raises(ConfigError, match=r"num_blocks=32: 4 sequences of 512 tokens need 33"):
        app.forward(torch.ones(1, 5, dtype=torch.int64))
