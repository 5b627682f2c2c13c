"""How many checkpoint slots the worker asks for."""

from types import SimpleNamespace

import pytest
import torch

from qwen36_neuron.config import ModelConfig
from vllm_integration import worker
from vllm_integration.settings import Settings


def choose(monkeypatch: pytest.MonkeyPatch, published, blocks: int | None, **settings) -> tuple[int, list[str]]:
    """The number for the 27B in bf16, and what was warned of."""
    warnings: list[str] = []
    monkeypatch.setattr(worker.logger, "warning", lambda text, *values: warnings.append(text % values))
    chosen = Settings(**settings)
    this = SimpleNamespace(
        settings=chosen,
        model=ModelConfig.from_dict(published),
        model_config=SimpleNamespace(dtype=torch.bfloat16),
        kv_element=torch.bfloat16.itemsize,
        cache_config=SimpleNamespace(num_gpu_blocks_override=blocks),
        determine_available_memory=lambda: int(chosen.cache_gib * 2**30),
    )
    return worker.Worker._choose_slots(this), warnings


def test_the_default_follows_the_memory_of_kv(monkeypatch, published_27b):
    assert choose(monkeypatch, published_27b, None, cache_gib=20) == (69, [])
    assert choose(monkeypatch, published_27b, 10_000, cache_gib=1) == (136, [])
    assert choose(monkeypatch, published_27b, None, cache_gib=1) == (16, [])


def test_what_is_set_is_taken_and_too_few_are_warned_of(monkeypatch, published_27b):
    assert choose(monkeypatch, published_27b, 4097, num_slots=64) == (64, [])
    number, (warning,) = choose(monkeypatch, published_27b, None, cache_gib=20.5, num_slots=8)
    assert number == 8
    assert "8 checkpoint slots of 146.8 MiB are few beside 20992.0 MiB of KV" in warning
