"""The 35B-A3B: its profiles' memory, and what its steps and prompts are estimated to take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from qwen36_neuron.artifact.check import check
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.graph.profile import Profile, shipped
from qwen36_neuron.planning.delta_rule import RowByRow
from qwen36_neuron.planning.estimate import Estimate
from qwen36_neuron.planning.experts import expected_experts, most_experts
from qwen36_neuron.planning.mixture_report import BATCHES, mixture_json, mixture_table
from qwen36_neuron.planning.rates import roofline

from .test_contexts import mixture

PROFILES = [name for name in shipped() if name.startswith("35b-")]


@pytest.fixture
def many(published_27b: dict[str, Any]) -> ModelConfig:
    return ModelConfig.from_dict(mixture(published_27b))


@pytest.fixture
def estimate(many: ModelConfig) -> Estimate:
    return Estimate(Profile.load("35b-2k"), many, RowByRow())


@pytest.mark.parametrize("name", PROFILES)
def test_a_shipped_profile_fits(name: str, many: ModelConfig) -> None:
    """FP8 weights of 35 GB, keys and values of 20 KiB a token, which two of four ranks hold each: 40 in all."""
    checked = check(Profile.load(name), many)
    checked.require()
    weights = sum(line.rank_bytes for line in checked.plan.lines if line.name.startswith("weights")) * 4
    assert 34e9 < weights < 36.5e9
    blocks = checked.profile.options.num_blocks
    (held,) = (line for line in checked.plan.lines if line.name == "KV")
    assert held.rank_bytes * 4 == blocks * 64 * 40 * 1024
    assert "each head on 2 ranks" in held.detail


@pytest.mark.parametrize("name", PROFILES)
def test_a_shipped_profile_takes_kernels_and_drafts(name: str, many: ModelConfig) -> None:
    """The plan has the draft layer, its experts among it, in bf16: 1.7 GB more."""
    profile = Profile.load(name)
    plain = check(profile, many)
    assert plain.findings == []
    drafting = replace(profile.options, kernels="nki", max_drafts=3, max_proposals=3)
    checked = check(replace(profile, options=drafting), many)
    assert checked.findings == []
    (layer,) = (line for line in checked.plan.lines if line.name == "weights: mtp")
    assert 4 * layer.rank_bytes == pytest.approx(1.68e9, rel=0.03)


def test_128_sequences_of_1k_are_planned(many: ModelConfig) -> None:
    options = Profile.load("35b-2k").options
    assert options.num_lanes == 128
    assert (options.num_blocks - 1) * 64 >= 128 * 1024


@pytest.mark.parametrize("tokens", [1, 2, 8, 64])
def test_expected_experts_by_chance(tokens: int) -> None:
    scores = torch.rand(2000, tokens, 32, generator=torch.Generator().manual_seed(tokens))
    drawn = scores.topk(4, -1).indices.flatten(1)
    seen = sum(len(set(row)) for row in drawn.tolist()) / len(drawn)
    assert expected_experts(tokens, 32, 4) == pytest.approx(seen, rel=0.01)
    assert most_experts(tokens, 32, 4) == min(32, 4 * tokens)


def test_experts_of_a_step_by_hand(estimate: Estimate) -> None:
    """One sequence: 8 experts of 3 x 2048 x 512 bytes a layer, a quarter on a rank; gathering passes it 3 times."""
    (experts,) = (phase for phase in estimate.step_phases(1, 1024) if phase.name == "experts")
    each = 3 * 2048 * 512 / 4
    assert experts.needed_bytes == 40 * 8 * each
    assert experts.flops == experts.needed_flops == 40 * 8 * 2 * each
    assert experts.hbm_bytes == 40 * (3 * 8 * each + 8 * 2 * 7 * (2048 + 128))


def test_the_last_layer_of_a_prompt_has_one_token(estimate: Estimate) -> None:
    bucket = estimate.profile.options.buckets.prefill[2]
    (experts,) = (phase for phase in estimate.prefill_phases(bucket) if phase.name == "experts")
    each = 3 * 2048 * 512 / 4
    assert experts.needed_flops == 2 * each * 8 * (39 * 1024 + 1)
    assert experts.flops == 2 * each * (39 * 24320 + 8)


def test_the_report_of_batches(estimate: Estimate) -> None:
    """What has to be read grows to all experts; even routing at worst reads no less than expected."""
    result = mixture_json(estimate)["mixture"]
    rows = result["steps"]
    assert tuple(row["batch"] for row in rows) == BATCHES
    assert [row["experts_gathered"] for row in rows] == [8, 16, 32, 64, 128, 256, 320, 352]
    assert rows[0]["experts_expected"] == pytest.approx(8)
    assert rows[-1]["experts_expected"] == pytest.approx(251.6, abs=0.1)
    for row in rows:
        assert row["experts_expected"] <= row["experts_at_worst"] + 1e-9
        assert row["tokens_per_s"] < row["roofline_at_worst_tokens_per_s"] <= row["roofline_tokens_per_s"] * (1 + 1e-9)
    assert result["published_tokens_per_s"]["decode, batch 1"] == 48.9
    table = mixture_table(mixture_json(estimate) | {"profile": "35b-2k", "weights": "fp8"})
    assert table.row_count == len(BATCHES)


def test_worst_routing_changes_the_roofline_alone(estimate: Estimate) -> None:
    worst = replace(estimate, worst_routing=True)
    assert worst.token(128, 1024) == estimate.token(128, 1024)
    even, uneven = (roofline(side.step_phases(16, 1024), side.rates)[0] for side in (estimate, worst))
    assert uneven > even


def test_drafts_have_experts_too(estimate: Estimate) -> None:
    assert "draft: experts" in {phase.name for phase in estimate.draft_phases(1, 1024)}


def test_a_dense_model_has_none(published_27b: dict[str, Any]) -> None:
    dense = Estimate(Profile.load("32k"), ModelConfig.from_dict(published_27b), RowByRow())
    assert not mixture_json(dense)
    assert not [phase for phase in dense.step_phases(1, 1024) if "experts" in phase.name]


def test_fused_kernels_of_a_mixture_have_no_estimate(many: ModelConfig) -> None:
    sizes = Profile.load("35b-32k")
    fused = replace(sizes, options=replace(sizes.options, kernels="fused"))
    with pytest.raises(ConfigError, match="mixture of experts"):
        Estimate(fused, many, RowByRow())
