"""Profiles and models that the tests of artifacts share."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from qwen36_neuron.config import ModelConfig
from qwen36_neuron.graph.profile import Profile
from qwen36_neuron.rope import YarnConfig

PROFILES = Path(__file__).resolve().parents[3] / "profiles"


@pytest.fixture
def raw() -> dict[str, Any]:
    """The fields of the 128K profile. Free to change."""
    fields: dict[str, Any] = yaml.safe_load((PROFILES / "128k.yaml").read_text())
    return fields


@pytest.fixture
def big(published_27b: dict[str, Any]) -> ModelConfig:
    """Qwen3.6-27B."""
    return ModelConfig.from_dict(published_27b)


@pytest.fixture
def stretched(big: ModelConfig) -> ModelConfig:
    """The same, its positions stretched to four times as many as its card says."""
    return replace(big, rope=replace(big.rope, yarn=YarnConfig(4.0, 262144, 0.1 * math.log(4) + 1)))


@pytest.fixture
def tiny_profile() -> Profile:
    """Sizes that the tiny checkpoint can be compiled for."""
    sizes = {"max_model_len": 512, "max_num_seqs": 2, "num_blocks": 17, "slots": 4, "tp_degree": 1, "logical_cores": 2}
    commits = {"prefill_commits": 4, "decode_commits": 1, "sampling_candidates": 256}
    buckets = {"prefill_buckets": [[128, 0], [128, 512]], "decode_buckets": [512], "decode_rows": [1]}
    other = {"description": "for tests", "weights": "bf16", "dtype": "bfloat16", "kernels": "torch"}
    return Profile.parse("tiny", sizes | commits | buckets | other)
