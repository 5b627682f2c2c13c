"""Checkpoints that the tests share, made once a session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qwen36_neuron.checkpoint.maker import PRESETS, make_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 layers, hidden 256, one key head for three value heads, with the multi-token-prediction layer. Read only."""
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), replace(PRESETS["tiny"], num_mtp_layers=1))


@pytest.fixture(scope="session")
def demo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 layers, hidden 256, about 13 M parameters: the shape that the benchmarks run. Read only."""
    return make_checkpoint(tmp_path_factory.mktemp("demo"), PRESETS["demo"])
