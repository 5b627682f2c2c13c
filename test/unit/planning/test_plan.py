"""The memory plan, against tensors that were really made and against sizes worked out by hand for the 27B."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen36_cli import app
from qwen36_neuron.cache.hybrid import HybridCache
from qwen36_neuron.checkpoint.load import load_weights
from qwen36_neuron.checkpoint.weight_format import WeightFormat
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.planning.plan import GIB, Plan, PlanRequest


@pytest.fixture
def big(published_27b: dict[str, Any]) -> ModelConfig:
    return ModelConfig.from_dict(published_27b)


def lines(plan: Plan) -> dict[str, int]:
    return {line.name: line.rank_bytes for line in plan.lines}


def weights(plan: Plan) -> int:
    return sum(size for name, size in lines(plan).items() if name.startswith("weights"))


@pytest.mark.parametrize("mtp", [False, True])
def test_bf16_weights_are_as_large_as_what_is_loaded(tiny_checkpoint: Path, mtp: bool) -> None:
    config = ModelConfig.from_pretrained(tiny_checkpoint)
    loaded = load_weights(tiny_checkpoint, config, dtype=torch.bfloat16, include_mtp=mtp)
    assert weights(Plan(config, PlanRequest(64, tp=1, mtp=mtp))) == sum(tensor.nbytes for tensor in loaded.values())


@pytest.mark.parametrize("slots", [0, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_caches_are_as_large_as_what_is_allocated(demo_checkpoint: Path, dtype: torch.dtype, slots: int) -> None:
    plan = Plan(ModelConfig.from_pretrained(demo_checkpoint), PlanRequest(200, 3, slots, tp=2, kv_dtype=dtype))
    assert plan.spec.num_blocks == 3 * 4 + 1
    cache = HybridCache(plan.spec)
    kv = [tensor for pair in cache.kv.values() for tensor in pair]
    held = sum(tensor.nbytes for tensor in kv)
    held += sum(layer.recurrent.nbytes + layer.window.nbytes for layer in cache.banks.values())
    found = lines(plan)
    assert held == found["KV"] + found["running lanes"] + found.get("checkpoint slots", 0)
    assert ("checkpoint slots" in found) == bool(slots)


@pytest.mark.parametrize("mtp", [False, True])
def test_fp8_keys_and_values_are_half_and_nothing_else_changes(demo_checkpoint: Path, mtp: bool) -> None:
    model = replace(ModelConfig.from_pretrained(demo_checkpoint), num_mtp_layers=1)
    plain = Plan(model, PlanRequest(200, 3, 5, tp=2, mtp=mtp, max_drafts=2))
    fp8 = Plan(model, replace(plain.request, fp8_kv=True))
    assert sum(half.nbytes for pair in HybridCache(fp8.spec).kv.values() for half in pair) == lines(fp8)["KV"]
    assert 2 * lines(fp8)["KV"] == lines(plain)["KV"]
    layer = lines(plain)["KV"] // len(model.attention_layers) if mtp else 0
    assert lines(plain).get("draft layer cache", 0) - lines(fp8).get("draft layer cache", 0) == layer // 2
    rest = ("KV", "draft layer cache")
    assert [line for line in plain.lines if line.name not in rest] == [
        line for line in fp8.lines if line.name not in rest
    ]


def test_fp8_keys_and_values_of_the_27b_on_the_command_line(
    published_27b: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """16 layers x 1 head a rank x 256 x 2 are 8 KiB a token and rank."""
    (tmp_path / "config.json").write_text(json.dumps(published_27b))
    with pytest.raises(SystemExit):
        app(["plan", "--model", str(tmp_path), "--max-model-len", "131072", "--kv-cache-dtype", "fp8", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["kv_cache_dtype"] == "fp8_e4m3"
    kv = next(line for line in found["lines"] if line["name"] == "KV")
    assert kv["rank_bytes"] == (131072 + 64) * 8192
    assert kv["detail"].startswith("fp8_e4m3")


def test_the_27b_in_bf16_by_hand(big: ModelConfig) -> None:
    found = lines(Plan(big, PlanRequest(131072, max_num_seqs=1, slots=64)))
    assert found["weights: embeddings"] == 2 * 248320 * 5120 * 2 // 4
    assert found["weights: mlp"] == 64 * 3 * 5120 * 17408 * 2 // 4
    assert found["weights: attention"] == 16 * (12288 + 2048 + 6144) * 5120 * 2 // 4
    assert found["KV"] == (2048 + 1) * 64 * 16 * 1024  # 64 KiB a token over four ranks
    assert found["running lanes"] == 2 * 48 * (12 * 128 * 128 * 4 + 2560 * 3 * 2)
    assert found["checkpoint slots"] == 64 * 48 * (12 * 128 * 128 * 4 + 2560 * 3 * 2)
    assert weights(Plan(big, PlanRequest(64))) / 1e9 == pytest.approx(13.4, abs=0.1)


def test_the_27b_in_fp8_by_hand(big: ModelConfig) -> None:
    bf16, mlp, full = (Plan(big, PlanRequest(64, weights=kind)) for kind in WeightFormat)
    # A rank's gate and up have 2 x 4352 output channels and its down 5120, each with an fp32 scale.
    assert lines(mlp)["weights: mlp"] == 64 * (3 * 5120 * 17408 // 4 + (2 * 4352 + 5120) * 4)
    assert {name for name in lines(bf16) if lines(bf16)[name] != lines(mlp)[name]} == {"weights: mlp"}
    assert weights(mlp) / 1e9 == pytest.approx(9.2, abs=0.1)
    attention = 16 * ((12288 + 2048) // 4 * 5120 + 5120 * 6144 // 4 + ((12288 + 2048) // 4 + 5120) * 4)
    assert lines(full)["weights: attention"] == attention
    head = 248320 // 4 * 5120
    assert lines(full)["weights: embeddings"] == head * 2 + head + 248320 // 4 * 4
    assert weights(full) < weights(mlp)


def test_the_draft_layer_stays_in_bf16(big: ModelConfig) -> None:
    for kind in WeightFormat:
        with_draft, without = (Plan(big, PlanRequest(4096, 2, 3, weights=kind, mtp=mtp)) for mtp in (True, False))
        draft = lines(with_draft)["weights: mtp"]
        linear = (3 * 5120 * 17408 + (12288 + 2048 + 6144) * 5120 + 5120 * 2 * 5120) // 4
        assert draft == linear * 2 + (5 * 5120 + 2 * 256) * 4
        kv = 2 * (2 * 64 + 1) * 64 * 256 * 2
        assert lines(with_draft)["draft layer cache"] == kv + (1 + 2 + 3) * 5120 * 2
        verifying = Plan(big, replace(with_draft.request, max_drafts=4))
        assert lines(verifying)["draft layer cache"] == kv + (1 + 2 + 3 + (1 + 2) * 4) * 5120 * 2
        assert with_draft.used_bytes == without.used_bytes + draft + kv + (1 + 2 + 3) * 5120 * 2


def test_what_must_fit_fits(big: ModelConfig) -> None:
    for length, sequences in ((32768, 8), (131072, 1)):
        plan = Plan(big, PlanRequest(length, sequences, 64, weights=WeightFormat.FP8_MLP, mtp=True))
        assert plan.fits
        assert plan.free_bytes == 24 * GIB - sum(lines(plan).values())
        plan.check()


def test_what_does_not_fit_is_refused_with_what_would(big: ModelConfig) -> None:
    plan = Plan(big, PlanRequest(131072, 8, 64, weights=WeightFormat.FP8_MLP))
    with pytest.raises(ConfigError) as caught:
        plan.check()
    text = str(caught.value)
    assert plan.limits["slots"] is None
    for field in ("max_model_len", "max_num_seqs"):
        value = plan.limits[field]
        assert value is not None
        assert f"{field}={value}" in text
        assert 1 <= value < getattr(plan.request, field)

    def changed(**limits: int) -> Plan:
        asked = {"max_model_len": 131072, "max_num_seqs": 8} | limits
        return Plan(big, PlanRequest(**asked, slots=64, weights=WeightFormat.FP8_MLP))

    for field, value in plan.limits.items():
        if value is not None:
            assert changed(**{field: value}).fits
            assert not changed(**{field: value + 1}).fits


def test_too_large_a_model_says_that_no_one_limit_helps(big: ModelConfig) -> None:
    plan = Plan(big, PlanRequest(4096, tp=1))
    assert set(plan.limits.values()) == {None}
    with pytest.raises(ConfigError, match="Lowering one limit is not enough"):
        plan.check()


def test_fewer_blocks_than_every_sequence_needs(big: ModelConfig) -> None:
    plan = Plan(big, PlanRequest(131072, 8, num_blocks=4097))
    assert lines(plan)["KV"] == 4097 * 64 * 16 * 1024
    assert plan.fits
    assert not Plan(big, PlanRequest(131072, 8)).fits


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        ({"max_model_len": 0}, "max_model_len"),
        ({"max_model_len": 262145}, "max_model_len"),
        ({"max_model_len": 64, "max_num_seqs": 0}, "max_num_seqs"),
        ({"max_model_len": 64, "slots": -1}, "slots"),
        ({"max_model_len": 65, "num_blocks": 2}, "num_blocks"),
        ({"max_model_len": 64, "tp": 8}, "tp"),
        ({"max_model_len": 64, "tp": 3}, "tp_degree"),
    ],
)
def test_impossible_requests_are_refused(big: ModelConfig, request_fields: dict[str, int], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Plan(big, PlanRequest(**request_fields)).check()  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.fixture
def model(published_27b: dict[str, Any], tmp_path: Path) -> str:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(published_27b))
    return str(file)


def test_the_command_prints_a_table(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        app(["plan", "--model", model, "--max-model-len", "32768", "--max-num-seqs", "8", "--weights", "fp8-mlp"])
    out = capsys.readouterr().out
    assert done.value.code == 0
    assert "modelled" in out
    assert "estimate" in out
    assert "4097 blocks" in out


def test_the_command_prints_json(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        app(["plan", "--model", model, "--max-model-len", "131072", "--slots", "64", "--json"])
    assert done.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["fits"]
    assert sum(line["rank_bytes"] for line in printed["lines"]) == printed["used_rank_bytes"]
    assert printed["used_rank_bytes"] + printed["free_rank_bytes"] == 24 * GIB
    assert printed["largest_that_fits"]["slots"] > 64


def test_the_command_refuses_what_does_not_fit(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        app(["plan", "--model", model, "--max-model-len", "262144", "--max-num-seqs", "8"])
    assert done.value.code == 2
    printed = capsys.readouterr()
    assert "DOES NOT FIT" in printed.out
    assert printed.err.startswith("error: memory=")
    assert "Traceback" not in printed.err
