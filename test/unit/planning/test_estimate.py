"""The estimate against published measurements of another implementation, and against itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import pytest
import torch

from nki_kernels import examples
from nki_kernels.interpreter import profile as price
from qwen36_cli import app
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.graph.buckets import PrefillBucket
from qwen36_neuron.graph.profile import Profile
from qwen36_neuron.planning.delta_rule import Prefill, RowByRow
from qwen36_neuron.planning.estimate import Estimate, single_sequence
from qwen36_neuron.planning.kernel_prices import KernelPrices
from qwen36_neuron.planning.plan import plan_profile
from qwen36_neuron.planning.rates import Phase, Rates

PROFILES = Path(__file__).resolve().parents[3] / "profiles"
PUBLISHED_PREFILL = (404, 602)  # tokens/s over 512 to 64K tokens, row-by-row solve
PUBLISHED_DECODE = (26.3, 26.6)  # tokens/s, MLPs in FP8


@pytest.fixture
def big(published_27b: dict[str, Any]) -> ModelConfig:
    return ModelConfig.from_dict(published_27b)


@pytest.fixture
def sizes() -> Profile:
    return Profile.load(PROFILES / "128k.yaml")


@pytest.fixture
def baseline(big: ModelConfig, sizes: Profile) -> Estimate:
    return Estimate(single_sequence(sizes), big, RowByRow())


@pytest.fixture
def ours(big: ModelConfig, sizes: Profile) -> Estimate:
    return Estimate(sizes, big, Prefill())


@pytest.mark.parametrize("prompt", [512, 1024, 4096, 16384, 65536])
def test_the_published_baselines_prefill_is_within_twice_of_its_measurement(baseline: Estimate, prompt: int) -> None:
    rate = prompt / baseline.first_token(prompt)
    low, high = PUBLISHED_PREFILL
    assert high / 2 <= rate <= low * 2


def test_the_published_baselines_decode_is_within_twice_of_its_measurement(baseline: Estimate) -> None:
    rate = 1 / baseline.token(1, 1024)
    assert max(PUBLISHED_DECODE) / 2 <= rate <= min(PUBLISHED_DECODE) * 2


def test_the_baseline_is_bound_by_its_solve_as_measured(baseline: Estimate) -> None:
    phases = baseline.prompt_phases(16384)
    total = sum(phase.seconds(baseline.rates) for phase in phases)
    solve = sum(phase.seconds(baseline.rates) for phase in phases if phase.name == "delta rule")
    assert 0.5 < solve / total < 0.9  # published: 68 % of the time is DeltaNet, 91 % of that the solve


@nki.jit
def _rows(a: nl.ndarray, mask: nl.ndarray, count: int) -> nl.ndarray:
    """The instructions that `RowByRow` prices, in their order, `count` rows of them."""
    out = nl.ndarray(a.shape, dtype=nl.float32, buffer=nl.shared_hbm)
    tiles = [nl.ndarray((128, 128), dtype=nl.float32, buffer=nl.sbuf) for _ in range(8)]
    stationary, ones, solved, product, summed, masked, update, following = tiles
    column = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
    for tile, source in ((stationary, a), (ones, mask), (solved, a)):
        nisa.dma_copy(dst=tile, src=source)
    for row in nl.static_range(count):
        sums = nl.ndarray((128, 128), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(dst=sums, stationary=stationary, moving=solved)
        nisa.tensor_copy(dst=product, src=sums)
        nisa.tensor_tensor(dst=summed, data1=product, data2=ones, op=nl.add)
        nisa.tensor_tensor(dst=masked, data1=summed, data2=ones, op=nl.multiply)
        nisa.tensor_copy(dst=column, src=ones[0:128, row : row + 1])
        nisa.tensor_scalar(dst=update, data=masked, op0=nl.multiply, operand0=column, engine=nisa.vector_engine)
        nisa.tensor_tensor(dst=following, data1=solved, data2=update, op=nl.add)
        nisa.tensor_copy(dst=solved, src=following)
    nisa.dma_copy(dst=out, src=solved)
    return out


@pytest.mark.interpreter
def test_the_price_of_a_row_is_the_interpreters_for_the_same_instructions() -> None:
    tile = torch.zeros(128, 128)
    few, many = (price(_rows, tile, tile, count)[1].time_us for count in (4, 20))
    assert RowByRow().row_seconds() * 1e6 == pytest.approx((many - few) / 16, rel=0.1)


@pytest.mark.interpreter
def test_the_kernels_price_grows_by_the_tile_and_is_far_below_the_baselines(big: ModelConfig) -> None:
    rank = big.rank(4)
    times = [Prefill().seconds(big, rank, tokens) for tokens in (128, 256, 512, 1024, 4096)]
    assert times == sorted(times)
    assert times[-1] < RowByRow().seconds(big, rank, 4096) / 20


def test_weights_are_read_at_the_rate_that_the_plan_counts(ours: Estimate) -> None:
    (weights,) = (phase for phase in ours.decode_phases(8, 1024) if phase.name == "weights")
    lines = {line.name: line.rank_bytes for line in plan_profile(ours.profile, ours.model).lines}
    planned = (
        sum(lines[f"weights: {part}"] for part in ("attention", "deltanet", "mlp")) + lines["weights: embeddings"] / 2
    )
    assert weights.hbm_bytes == pytest.approx(planned, rel=0.002)  # but for vectors and scales


@pytest.mark.interpreter
def test_no_estimate_is_faster_than_its_peaks(ours: Estimate) -> None:
    peak = replace(ours, rates=ours.rates.ideal())
    assert peak.first_token(4096) < ours.first_token(4096)
    # 24.4 G parameters in matrices that every token meets, 2 FLOPs each, at 667 TFLOPS
    assert 4096 / peak.first_token(4096) < 667e12 / (2 * 24.3e9)
    assert peak.token(1, 1024) > 36e9 / 2.9e12 * 0.95


@pytest.mark.interpreter
def test_an_estimate_lies_between_its_cheapest_and_its_dearest(ours: Estimate, baseline: Estimate) -> None:
    for estimate in (ours, baseline):
        low, high = estimate.at("low"), estimate.at("high")
        assert low.first_token(4096) < estimate.first_token(4096) < high.first_token(4096)
        assert low.token(1, 1024) < estimate.token(1, 1024) < high.token(1, 1024)  # two all-reduces a layer
    assert ours.at("centre") == ours


@pytest.mark.interpreter
def test_kernels_are_faster_than_plain_operations_and_have_a_range(ours: Estimate) -> None:
    """Of attention and states, which alone differ, both where much is held and where little is."""
    nki = replace(ours, profile=replace(ours.profile, options=replace(ours.profile.options, kernels="nki")))
    for context in (1024, 32768):
        assert nki.token(8, context) < ours.token(8, context)
        assert nki.at("low").token(8, context) < nki.token(8, context) < nki.at("high").token(8, context)
    assert nki.first_token(65536) < ours.first_token(65536)
    bounds = {phase.name: phase.bound(nki.rates) for phase in nki.decode_phases(8, 32768)}
    assert (bounds["attention"], bounds["states"]) == ("kernel: tensor", "kernel: tensor")


@pytest.mark.interpreter
@pytest.mark.parametrize(("rows", "tokens", "held"), [(8, 1, 4096), (1, 512, 3584)])
def test_attention_has_the_price_of_its_kernel(big: ModelConfig, rows: int, tokens: int, held: int) -> None:
    made = examples.attention(tokens, held, rows)
    us = price(made.kernel, *made.args)[1].time_us
    assert KernelPrices(big, 4, 2).attention(rows, tokens, held)[0] * 1e6 == pytest.approx(us, rel=1e-3)


@pytest.mark.interpreter
def test_attention_over_more_than_was_priced_grows_by_the_line(big: ModelConfig) -> None:
    prices, made = KernelPrices(big, 4, 2), examples.attention(1, 16384)
    us = price(made.kernel, *made.args)[1].time_us
    assert prices.attention(1, 1, 16384)[0] * 1e6 == pytest.approx(us, rel=0.1)


@pytest.mark.interpreter
def test_states_are_the_delta_rule_and_the_convolution(big: ModelConfig) -> None:
    prices = KernelPrices(big, 4, 2)
    for sizes, made in (
        ((8, 1), (examples.decode(8, checkpoints=0), examples.conv_step(8))),
        ((8, 5), (examples.verify(8, 5), examples.conv_verify(8, 5))),
    ):
        us = sum(price(one.kernel, *one.args)[1].time_us for one in made)
        assert prices.states(*sizes)[0] * 1e6 == pytest.approx(us, rel=1e-3)
    assert prices.states(24, 5)[0] == pytest.approx(  # twelve rows a launch of the one, ten of the other
        2 * prices._price("verify", 12, 5, 0, 2, 6)[0] + 3 * prices._price("conv_verify", 8, 5, 0, 1280)[0]
    )


def test_fewer_bytes_are_faster(big: ModelConfig, sizes: Profile) -> None:
    def token(weights: str) -> float:
        return Estimate(replace(sizes, options=replace(sizes.options, weights=weights)), big, Prefill()).token(1, 1024)

    assert token("fp8") < token("fp8-mlp") < token("bf16")


@pytest.mark.interpreter
def test_a_prompt_is_cut_into_the_buckets_that_the_application_takes(ours: Estimate) -> None:
    def scores(pairs: list[tuple[int, int]]) -> float:
        buckets = (ours.prefill_phases(PrefillBucket(*pair)) for pair in pairs)
        return sum(phase.seconds(ours.rates) for phases in buckets for phase in phases)

    assert ours.first_token(100) == pytest.approx(scores([(128, 0)]))
    assert ours.first_token(1100) == pytest.approx(scores([(1024, 0), (128, 6144)]))
    assert ours.first_token(1024) < ours.first_token(1025) < ours.first_token(2048)


def test_more_sequences_than_rows_take_more_steps(ours: Estimate) -> None:
    assert ours.token(8, 1024) == ours.token(2, 1024)
    assert ours.token(16, 1024) == pytest.approx(2 * ours.token(8, 1024))
    assert ours.token(9, 1024) == pytest.approx(ours.token(8, 1024) + ours.token(1, 1024))


def test_a_sequence_alone_is_faster_in_a_graph_of_one_row(ours: Estimate) -> None:
    options = ours.profile.options
    whole = replace(ours, profile=replace(ours.profile, options=replace(options, decode_rows=())))
    assert whole.token(1, 1024) == ours.token(8, 1024)
    assert 0.6 * whole.token(1, 1024) < ours.token(1, 1024) < 0.95 * whole.token(1, 1024)


def test_the_slowest_resource_is_the_bound_and_decides() -> None:
    rates = Rates(tensor=1.0, hbm=1.0, vector=1.0, tensor_efficiency=0.5, hbm_efficiency=0.25)
    work = Phase("work", flops=1.0, hbm_bytes=1.0, vector_elements=3.0)
    assert (work.bound(rates), work.seconds(rates)) == ("HBM", 4.0)
    assert replace(work, hbm_bytes=0.1).bound(rates) == "VectorE"
    assert replace(work, hbm_bytes=0.1, flops=2.0).bound(rates) == "TensorE"
    assert replace(work, fixed=9.0).bound(rates) == "latency"


@pytest.mark.interpreter
def test_the_command_prints_json_marked_as_modelled(
    published_27b: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published_27b))
    with pytest.raises(SystemExit) as done:
        app(["estimate", "--model", str(tmp_path), "--profile", str(PROFILES / "4k.yaml"), "--json"])
    assert done.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["modelled"] is True
    assert [entry["prompt"] for entry in result["prefill"]] == [512, 1024]
    assert all(phase["bound"] for entry in result["decode"] for phase in entry["phases"].values())
