"""Checkpoints that the tests share, made once a session, and which tests this machine can run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nki_kernels.interpreter.install import real_nki_present
from qwen36_neuron.checkpoint.maker import PRESETS, make_checkpoint

INTERPRETED = ("unit/nki_kernels",)
"""Tests of kernels in the interpreter alone: beside AWS's own nki, which they would import, they are not collected."""

collect_ignore = list(INTERPRETED) if real_nki_present() else []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Beside AWS's own nki there is no interpreter."""
    if real_nki_present():
        for item in items:
            if item.get_closest_marker("interpreter"):
                item.add_marker(pytest.mark.skip(reason="runs the interpreter, and AWS's own nki is installed"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 layers, hidden 256, one key head for three value heads, with the multi-token-prediction layer. Read only."""
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), replace(PRESETS["tiny"], num_mtp_layers=1))


@pytest.fixture(scope="session")
def tiny_mixture_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 layers of 8 experts, of which a token has 2, with the multi-token-prediction layer. Read only."""
    return make_checkpoint(tmp_path_factory.mktemp("tiny-mixture"), replace(PRESETS["tiny-moe"], num_mtp_layers=1))


@pytest.fixture(scope="session")
def demo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 layers, hidden 256, about 13 M parameters: the shape that the benchmarks run. Read only."""
    return make_checkpoint(tmp_path_factory.mktemp("demo"), PRESETS["demo"])


@pytest.fixture
def published_27b() -> dict[str, Any]:
    """The content of the published Qwen3.6-27B's config.json, as far as the text model goes. Free to change."""
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen3_5_text",
            "attention_bias": False,
            "attn_output_gate": True,
            "eos_token_id": 248044,
            "full_attention_interval": 4,
            "head_dim": 256,
            "hidden_act": "silu",
            "hidden_size": 5120,
            "intermediate_size": 17408,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 48,
            "linear_value_head_dim": 128,
            "max_position_embeddings": 262144,
            "mtp_num_hidden_layers": 1,
            "num_attention_heads": 24,
            "num_hidden_layers": 64,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "mrope_interleaved": True,
                "mrope_section": [11, 11, 10],
                "partial_rotary_factor": 0.25,
                "rope_theta": 10000000,
                "rope_type": "default",
            },
            "vocab_size": 248320,
        },
    }
