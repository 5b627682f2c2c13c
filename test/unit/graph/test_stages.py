"""Kernels a stage: how profiles say them, what goes together, and what graphs they make."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.graph.options import GraphOptions
from qwen36_neuron.graph.profile import Profile
from qwen36_neuron.graph.stages import StageKernels
from qwen36_neuron.ops.fused import TOKENS
from qwen36_neuron.planning.plan import plan_profile


def options(**changes: Any) -> GraphOptions:
    return replace(Profile.load("4k").options, **changes)


def test_one_choice_is_for_all_stages_and_fused_for_those_that_have_such_kernels() -> None:
    assert StageKernels.of("nki") == StageKernels("nki", "nki", "nki")
    assert StageKernels.of("fused") == StageKernels("nki", "fused", "fused")
    assert [StageKernels.of(choice).fused for choice in ("torch", "nki", "fused")] == [False, False, True]


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ("fused", "fused"),
        ({"prefill": "nki", "decode": "fused", "verify": "fused"}, "fused"),
        ({"prefill": "torch", "decode": "torch", "verify": "torch"}, "torch"),
        ({"prefill": "nki", "decode": "fused", "verify": "nki"}, StageKernels("nki", "fused", "nki")),
    ],
)
def test_a_profile_says_one_or_one_a_stage(raw: Any, found: Any) -> None:
    assert StageKernels.read(raw) == found
    made = options(kernels=StageKernels.read(raw))
    assert GraphOptions.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        ("quick", "kernels='quick': is not known. Use one of: torch, nki, fused"),
        (["nki"], "is not known. Use torch, nki or fused, or say one"),
        ({"prefill": "nki", "decode": "nki", "draft": "nki"}, "kernels.draft='nki': is no stage"),
        ({"prefill": "nki", "decode": "fused"}, "kernels.verify=None: is missing"),
        ({"prefill": "nki", "decode": "quick", "verify": "nki"}, "kernels.decode='quick': is not known"),
        ({"prefill": "fused", "decode": "fused", "verify": "fused"}, "there are no fused kernels of prompts"),
        ({"prefill": "torch", "decode": "fused", "verify": "fused"}, "kernels.prefill='torch': plain operations write"),
        ({"prefill": "nki", "decode": "nki", "verify": "torch"}, "kernels.verify='torch': plain operations write"),
    ],
)
def test_what_cannot_be_is_refused_by_name(raw: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        StageKernels.read(raw)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"dtype": "float32"}, "dtype='float32': the fused kernels multiply bfloat16 or FP8"),
        ({"scales": "block"}, "scales='block': the fused kernels take FP8 weights with one scale an output channel"),
        ({"num_lanes": TOKENS + 1}, "num_lanes=65: make 65 tokens a step.*decode: nki"),
        ({"max_drafts": 8}, "max_drafts=8: make 72 tokens a step.*verify: nki"),
    ],
)
def test_what_the_fused_kernels_do_not_take_is_refused(changes: dict[str, Any], match: str) -> None:
    options(kernels="fused", max_drafts=7)
    with pytest.raises(ConfigError, match=match):
        options(kernels="fused", **changes)
    options(kernels="nki", **changes)


def test_a_stage_that_is_not_fused_may_have_more_tokens() -> None:
    made = options(kernels=StageKernels("nki", "fused", "nki"), max_drafts=8)
    assert (made.fused_tokens, options(kernels="fused", max_drafts=4).fused_tokens) == (8, 40)
    assert options(kernels="nki").fused_tokens == 0


def test_sizes_of_a_model_are_refused_by_name(published_27b: dict[str, Any]) -> None:
    model = ModelConfig.from_dict(published_27b)
    options(kernels="fused", max_drafts=4).check_model(model)
    with pytest.raises(ConfigError, match="12 DeltaNet value heads a rank are more than 10 of 48 tokens a step"):
        options(kernels="fused", max_drafts=5).check_model(model)
    with pytest.raises(ConfigError, match="5120 hidden channels a core are more than 3072 of 40 tokens a step"):
        options(kernels="fused", max_drafts=4, logical_cores=1).check_model(model)
    alone = options(kernels="fused", num_lanes=1, decode_rows=(), max_drafts=21)
    with pytest.raises(ConfigError, match="6 query heads a key head are more than 5 of 22 tokens a row"):
        alone.check_model(model)
    text = published_27b["text_config"]
    odd = ModelConfig.from_dict({**published_27b, "text_config": {**text, "intermediate_size": 17408 - 512}})
    with pytest.raises(ConfigError, match="4224 intermediate channels a rank must be a multiple of 256"):
        options(kernels="fused").check_model(odd)


def test_fused_kernels_take_no_more_memory(published_27b: dict[str, Any]) -> None:
    """Prompts read the same copy of the weights."""
    model = ModelConfig.from_dict(published_27b)
    plain, fused = (
        plan_profile(replace(Profile.load("4k"), options=options(kernels=kernels)), model)
        for kernels in ("torch", "fused")
    )
    assert fused.used_bytes == plain.used_bytes


def test_projections_join_the_block_before_where_one_kernel_takes_both(published_27b: dict[str, Any]) -> None:
    model = ModelConfig.from_dict(published_27b)
    every = list(model.deltanet_layers[1:])  # before the first layer there is no block
    for changes, expected in (
        ({"weights": "fp8"}, every),
        ({"weights": "bf16"}, every),
        ({"weights": "fp8-mlp"}, []),  # of two number formats
        ({"weights": "fp8", "kernels": "nki"}, []),
        ({"weights": "fp8", "kernels": StageKernels("nki", "nki", "fused"), "max_drafts": 4}, every),
        ({"weights": "fp8", "logical_cores": 1}, every),
        ({"weights": "fp8", "logical_cores": 1, "max_drafts": 4}, []),  # 4096 channels a core of 40 tokens
    ):
        assert options(**{"kernels": "fused", **changes}).joined_layers(model) == expected, changes
