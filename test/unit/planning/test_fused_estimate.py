"""Estimates of graphs with fused kernels: what their prices take the place of, and rates against dense models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen36_neuron.config import ModelConfig
from qwen36_neuron.graph.profile import Profile
from qwen36_neuron.graph.stages import StageKernels
from qwen36_neuron.planning import kernel_prices, price_record
from qwen36_neuron.planning.bars import bars_json
from qwen36_neuron.planning.delta_rule import RowByRow
from qwen36_neuron.planning.dense import PROMPT, QWEN3_8B, QWEN3_32B
from qwen36_neuron.planning.estimate import Estimate
from qwen36_neuron.planning.kernel_prices import KernelPrices
from qwen36_neuron.planning.rates import Phase, Rates, roofline
from qwen36_neuron.planning.report import sweep_json

LAYERS, MIXERS, ATTENTION = 64, 48, 16
PART = 62080
"""Tokens of a rank's vocabulary."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...]]]:
    """Launches whose price was asked for: each costs a microsecond, one of fused kernels as many as it has tokens.

    The head's by its part of the vocabulary.
    """
    found: list[tuple[str, tuple[Any, ...]]] = []

    def price(name: str, sizes: tuple[Any, ...]) -> price_record.Price:
        found.append((name, sizes))
        us: float = sizes[0] if name.endswith(("step", "projection")) and name != "conv_step" else 1
        us = sizes[0] if name == "mlp_and_input" else us
        us = sizes[0] * sizes[2] if name == "attention_layer" else us
        us = sizes[0] * sizes[3] / PART if name == "head" else us
        return (0.5e-6 * us, 1e-6 * us, 2e-6 * us), f"kernel: {name}"

    monkeypatch.setattr(kernel_prices, "_price", price)
    return found


@pytest.fixture
def model(published_27b: dict[str, Any]) -> ModelConfig:
    return ModelConfig.from_dict(published_27b)


def estimate(model: ModelConfig, kernels: Any, weights: str = "fp8") -> Estimate:
    sizes = Profile.load("128k")
    options = replace(sizes.options, kernels=kernels, weights=weights, max_drafts=3, max_proposals=3)
    return Estimate(replace(sizes, options=options), model, RowByRow())


def named(phases: list[Phase]) -> dict[str, Phase]:
    return {phase.name: phase for phase in phases}


@pytest.mark.parametrize(
    ("weights", "codes"), [("fp8", (True, True)), ("fp8-mlp", (True, False)), ("bf16", (False, False))]
)
def test_a_step_has_a_price_of_every_fused_kernel(
    model: ModelConfig, asked: list[tuple[str, tuple[Any, ...]]], weights: str, codes: tuple[bool, bool]
) -> None:
    phases = named(estimate(model, "fused", weights).step_phases(8, 1024))
    joined = 0 if weights == "fp8-mlp" else MIXERS - 1
    assert phases["feed-forward"].seconds(Rates()) == pytest.approx(LAYERS * 8e-6)
    assert phases["DeltaNet mixers"].seconds(Rates()) == pytest.approx(((MIXERS - joined) * 8 + MIXERS) * 1e-6)
    assert "states" not in phases
    assert ("delta_net", (8, codes[1], 5120, 4, 12, 4, 2)) in asked
    verifying = named(estimate(model, "fused", weights).step_phases(8, 1024, 3))
    assert verifying["DeltaNet projections"].seconds(Rates()) == pytest.approx((2 * MIXERS - joined) * 32e-6)
    assert "states" in verifying
    assert (("mlp_and_input", (8, codes[0], 5120, 4352, 4096, 24, 4, 2)) in asked) == bool(joined)
    assert phases["feed-forward"].bound(Rates()) == "kernel: mlp_step"
    assert ("mlp_step", (8, codes[0], 5120, 4352, 4, 2)) in asked
    assert ("input_projection", (8, codes[1], 5120, 4096, 24, 2)) in asked
    assert ("output_projection", (8, codes[1], 5120, 12, 4, 2)) in asked
    assert phases["attention"].seconds(Rates()) == pytest.approx(ATTENTION * 8e-6)
    assert phases["head"].seconds(Rates()) == pytest.approx(8e-6)
    assert ("attention_layer", (1, 1024, 8, codes[1], 5120, 6, 2, 1, 4)) in asked
    assert ("head", (8, codes[1], 5120, PART // 8, 2)) in asked


def test_what_kernels_have_is_counted_once(model: ModelConfig, asked: list[Any]) -> None:
    """Their bytes and products are no longer plain operations', and nothing is lost."""
    fused, nki = (named(estimate(model, kernels).step_phases(8, 1024, 3)) for kernels in ("fused", "nki"))
    parts = [fused[name] for name in ("feed-forward", "DeltaNet projections", "attention", "head", "weights")]
    others = [nki[name] for name in ("MLPs", "attention", "weights")]  # with FP8 weights MLPs have a kernel as well
    for what in ("hbm_bytes", "flops"):
        found, wanted = (sum(getattr(phase, what) for phase in side) for side in (parts, others))
        assert found == pytest.approx(wanted)
    assert fused["collectives"].fixed == Rates().collective  # the embedding's
    assert nki["collectives"].fixed == 2 * LAYERS * Rates().collective
    assert fused["small operations"].fixed == Rates().half_layer
    assert roofline(list(fused.values()), Rates()) == pytest.approx(roofline(list(nki.values()), Rates()))


def test_attention_with_fp8_keys_is_priced_as_its_own_kernel(model: ModelConfig, asked: list[Any]) -> None:
    """And so are its projections, norms and sums as plain operations."""
    plain = estimate(model, "fused")
    eight = replace(plain.profile.options, kv_cache_dtype="fp8")
    phases = named(replace(plain, profile=replace(plain.profile, options=eight)).step_phases(8, 1024))
    assert "attention_layer" not in {name for name, _ in asked}
    assert phases["collectives"].fixed == pytest.approx((1 + ATTENTION) * Rates().collective)
    assert phases["small operations"].fixed == pytest.approx((1 + ATTENTION) * Rates().half_layer)
    fused = named(plain.step_phases(8, 1024))
    read = [side["weights"].hbm_bytes for side in (phases, fused)]
    assert read[0] - read[1] == ATTENTION * 5120 * (2 * 7 + 6) * 256  # a byte each


def test_a_drafts_head_is_the_kernel_too(model: ModelConfig, asked: list[Any]) -> None:
    fused, nki = (named(estimate(model, kernels).draft_step_phases(1, 1024)) for kernels in ("fused", "nki"))
    assert fused["draft: head"].seconds(Rates()) == pytest.approx(1e-6)
    moved = fused["draft: head"].hbm_bytes + fused["draft: weights"].hbm_bytes
    assert moved == nki["draft: weights"].hbm_bytes
    assert "draft: head" not in nki


def test_an_attention_layer_takes_the_line_between_those_priced(model: ModelConfig, asked: list[Any]) -> None:
    prices = KernelPrices(model, 4, 2)
    for rows, tokens in ((1, 1), (3, 1), (8, 4), (32, 1), (2, 3)):
        assert prices.attention_layer(rows, tokens, 32768, True)[0] == pytest.approx(rows * tokens * 1e-6)
    assert {sizes[:3] for name, sizes in asked} == {
        (tokens, held, rows) for tokens in (1, 4) for held in (1024, 8192) for rows in (1, 8)
    }


def test_stages_are_priced_as_they_are_chosen(model: ModelConfig, asked: list[Any]) -> None:
    mixed = estimate(model, StageKernels("nki", "fused", "nki"))
    assert "feed-forward" in named(mixed.step_phases(1, 1024))
    assert "feed-forward" not in named(mixed.step_phases(1, 1024, 3))


def test_tokens_between_those_priced_take_the_line(model: ModelConfig, asked: list[Any]) -> None:
    prices = KernelPrices(model, 4, 2)
    for tokens in (1, 4, 8, 32, 40, 42):
        assert prices.feed_forward(tokens, True)[0] == pytest.approx(tokens * 1e-6)
    assert {sizes[0] for name, sizes in asked if name == "mlp_step"} == {1, 8, 40}
    assert prices.attention(32, 1, 1024)[0] == prices.attention(8, 1, 1024)[0]  # a microsecond, whatever the rows


def test_a_dense_model_takes_what_was_measured() -> None:
    """The 32B is in no rate; of the 8B the time a token made one."""
    assert QWEN3_32B.token(PROMPT) == pytest.approx(QWEN3_32B.token_s, rel=0.25)
    assert QWEN3_32B.prompt(PROMPT) == pytest.approx(QWEN3_32B.prompt_s, rel=0.25)
    assert QWEN3_8B.token(PROMPT) == pytest.approx(QWEN3_8B.token_s, rel=0.02)
    assert QWEN3_8B.prompt(PROMPT) == pytest.approx(QWEN3_8B.prompt_s, rel=0.25)
    assert QWEN3_32B.parameters == pytest.approx(32e9, rel=0.01)


def test_nothing_is_faster_than_its_roofline(model: ModelConfig) -> None:
    plain = estimate(model, "torch")
    for rows, held in ((1, 1024), (8, 32768), (32, 262144)):
        phases = plain.step_phases(rows, held)
        least, bound = roofline(phases, plain.rates)
        assert bound == "HBM"
        assert least < sum(phase.seconds(plain.rates) for phase in phases)
    weights = named(plain.step_phases(1, 1024))["weights"].hbm_bytes
    assert roofline(plain.step_phases(1, 1024), plain.rates)[0] > weights / plain.rates.hbm


def test_a_size_that_the_machine_does_not_hold_is_told(model: ModelConfig) -> None:
    plain = estimate(model, "torch")
    assert sweep_json(plain, 1, 262144)["fits"]
    assert not sweep_json(plain, 32, 131072)["fits"]


def test_bars_have_ranges_and_say_what_binds(model: ModelConfig, asked: list[Any]) -> None:
    bars = bars_json(estimate(model, "fused", "fp8-mlp"))
    assert [bar["bar_tokens_per_s"] for bar in bars] == [60, 45, 300, 120, 5000, 5000, 2500]
    for bar in bars:
        low, high = bar["range_tokens_per_s"]
        assert low <= bar["tokens_per_s"] <= high
        assert all(phase["bound"] for phase in bar["phases"].values())


def test_a_recorded_price_is_of_the_sources_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(price_record, "RECORD", tmp_path / "prices.json")
    launch, price = ("mlp_step", (1, True), ("decode_mlp",)), ((1e-6, 2e-6, 3e-6), "kernel: tensor")
    price_record._entries.cache_clear()
    assert price_record.read(*launch) is None
    with price_record.collecting() as entries:
        price_record.add(*launch, price)
    price_record.write(entries, {})
    assert price_record.read(*launch) == price
    assert price_record.read("mlp_step", (2, True), ("decode_mlp",)) is None
    record = json.loads(price_record.RECORD.read_text())
    record["entries"]["mlp_step(1, True)"]["digest"] = "of other sources"
    price_record.RECORD.write_text(json.dumps(record))
    price_record._entries.cache_clear()
    assert price_record.read(*launch) is None
    price_record._entries.cache_clear()


@pytest.mark.interpreter
def test_a_recorded_price_is_the_interpreters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launch = "decode", (1, 1, 0, 2, 6)
    recorded = price_record.read(*launch, kernel_prices.KERNELS["decode"])
    monkeypatch.setattr(price_record, "RECORD", tmp_path / "none.json")
    price_record._entries.cache_clear()
    seconds, binds = kernel_prices._price.__wrapped__(*launch)
    price_record._entries.cache_clear()
    if recorded is not None:  # one of other sources is not read
        assert recorded == (pytest.approx(seconds), binds)


def test_a_kernels_sources_are_those_it_imports() -> None:
    assert price_record.digest(("decode_mlp",)) != price_record.digest(("decode_projection",))
    assert price_record.digest(("decode_mlp",)) == price_record.digest(("decode_mlp", "weight_stream", "decode_sums"))
