"""Rounds with drafts: acceptance against what was published, times against the plan and against steps without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qwen36_neuron.config import ModelConfig
from qwen36_neuron.graph.profile import Profile
from qwen36_neuron.planning.delta_rule import Prefill, RowByRow
from qwen36_neuron.planning.estimate import Estimate
from qwen36_neuron.planning.plan import Plan, PlanRequest
from qwen36_neuron.planning.report import speculation_json, speculation_table
from qwen36_neuron.planning.speculation import HIGH, LAUNCH, LOW, Acceptance, Speculation


@pytest.fixture
def ours(published_27b: dict[str, Any]) -> Estimate:
    return Estimate(Profile.load("128k"), ModelConfig.from_dict(published_27b), RowByRow())


def test_acceptance_is_the_published_one() -> None:
    assert LOW.tokens(3, 1024) == pytest.approx(2.8, abs=0.01)
    assert HIGH.tokens(3, 1024) == pytest.approx(3.5, abs=0.01)
    assert LOW.tokens(3, 32768) == pytest.approx(1.6, abs=0.01)
    assert HIGH.rate(32768) == 0.72
    assert HIGH.rate(1) == HIGH.rate(1024)
    assert HIGH.rate(131072) == HIGH.rate(32768)
    assert Acceptance(0.9, 0.4).rate(32 * 1024 // 8) == pytest.approx(0.7)  # 4096 of 1024 ... 32768: two of five steps


def test_no_drafts_are_one_token_a_round() -> None:
    assert (LOW.tokens(0, 1024), LOW.tokens(1, 1024)) == pytest.approx((1.0, 1.765))


@pytest.mark.parametrize("batch", [1, 8])
def test_a_round_is_a_wider_step_and_its_drafts(ours: Estimate, batch: int) -> None:
    step = ours.token(batch, 1024)
    rounds = [Speculation(ours, drafts).round(batch, 1024) for drafts in (1, 2, 3, 4)]
    each = [after - before for before, after in zip([step, *rounds], rounds, strict=False)]
    draft = sum(phase.seconds(ours.rates) for phase in ours.draft_phases(batch, 1024))
    assert all(more > draft for more in each)
    assert each[0] > LAUNCH + draft
    assert rounds[2] < 2 * step  # weights are read once, however many positions there are


def test_a_draft_reads_what_the_plan_counts(ours: Estimate) -> None:
    (weights,) = (phase for phase in ours.draft_phases(1, 1024) if phase.name == "draft: weights")
    lines = {line.name: line.rank_bytes for line in Plan(ours.model, PlanRequest(4096, mtp=True)).lines}
    planned = lines["weights: mtp"] + lines["weights: embeddings"] / 2
    assert weights.hbm_bytes == pytest.approx(planned, rel=0.002)


def test_a_verify_step_reads_the_draft_layers_keys_and_no_more_of_it(ours: Estimate) -> None:
    def read(drafts: int) -> float:
        (weights,) = (phase for phase in ours.decode_phases(1, 1024, drafts) if phase.name == "weights")
        return weights.hbm_bytes

    assert read(3) == read(1)
    assert read(1) - read(0) == (2 * 5120 * 5120 + (2 * 6144 + 2 * 1024) * 5120) * 2 / 4  # fc; queries, gates, keys


def test_a_prompt_takes_little_more_where_the_graphs_hold_the_draft_layer(ours: Estimate) -> None:
    """One of 64 layers is run whole, whose attention is one of 16, and the layer's keys are made."""
    options = replace(ours.profile.options, max_drafts=3, max_proposals=3)
    drafting = replace(ours, profile=replace(ours.profile, options=options))
    for prompt in (512, 8192, 65536):
        assert 1.001 < drafting.first_token(prompt) / ours.first_token(prompt) < 1.05
    assert 1.001 < drafting.token(1, 1024) / ours.token(1, 1024) < 1.01


@pytest.mark.interpreter
def test_with_kernels_the_draft_layer_takes_little_of_any_prompt(ours: Estimate) -> None:
    """The last layer's attention over all tokens is the kernel's, like the others'."""
    options = replace(ours.profile.options, kernels="nki")
    plain, drafting = (
        replace(
            ours,
            delta_rule=Prefill(),
            profile=replace(ours.profile, options=replace(options, max_proposals=n, max_drafts=n)),
        )
        for n in (0, 3)
    )
    for prompt in (512, 4096, 32768, 131008):
        assert 1.001 < drafting.first_token(prompt) / plain.first_token(prompt) < 1.05


@pytest.mark.interpreter
@pytest.mark.parametrize("batch", [1, 8])
def test_with_kernels_drafts_cost_less_and_earn_more(ours: Estimate, batch: int) -> None:
    """A state is read and written once whatever the drafts; plain operations pass it for each.

    Of one sequence their price, which has no waiting in it, is the lower all the same.
    """
    nki = replace(ours, profile=replace(ours.profile, options=replace(ours.profile.options, kernels="nki")))

    def states(estimate: Estimate, drafts: int) -> float:
        (phase,) = (phase for phase in estimate.decode_phases(batch, 1024, drafts) if phase.name == "states")
        return phase.seconds(estimate.rates)

    assert (states(nki, 3) < states(ours, 3)) == (batch == 8)
    assert states(nki, 3) < 2 * states(nki, 0)
    assert Speculation(nki, 3).needed(batch, 32768) < Speculation(ours, 3).needed(batch, 32768)


def test_a_round_that_gives_as_many_tokens_as_it_needs_is_as_fast(ours: Estimate) -> None:
    speculation = Speculation(ours, 1)
    needed = speculation.needed(8, 8192)
    just_enough = Acceptance(needed - 1, needed - 1)
    assert speculation.rate(8, 8192, just_enough) == pytest.approx(8 / ours.token(8, 8192))


def test_it_covers_what_a_published_port_measured(ours: Estimate) -> None:
    """27 tokens a second, and 44 to 48 with drafts, of which it had one or two."""
    alone = replace(ours, profile=replace(ours.profile, options=replace(ours.profile.options, weights="fp8-mlp")))
    assert Speculation(alone, 1).rate(1, 1024, LOW) < 48
    assert Speculation(alone, 2).rate(1, 1024, HIGH) > 44


def test_a_report_has_rounds_only_of_a_model_that_drafts(ours: Estimate) -> None:
    entries = speculation_json(ours, 8, 32768)
    assert [entry["drafts"] for entry in entries] == [1, 2, 3, 4]
    assert all(entry["tokens_per_s"] == sorted(entry["tokens_per_s"]) for entry in entries)
    assert all(entry["round_s"] > entry["drafts"] * entry["each_draft_s"] > 0 for entry in entries)
    plain = {"batch": 8, "context": 32768, "tokens_per_s": 80.0}
    table = speculation_table({"profile": "128k", "weights": "bf16", "decode": [plain], "speculation": entries})
    assert (len(table.columns), table.row_count) == (6, 1)
    assert speculation_json(replace(ours, model=replace(ours.model, num_mtp_layers=0)), 8, 32768) == []
