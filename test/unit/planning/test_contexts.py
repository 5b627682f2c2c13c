"""Contexts of up to a million tokens: what keys and values take, by hand, and what fits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen36_cli import app
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.planning.contexts import LENGTHS, contexts
from qwen36_neuron.planning.plan import GIB, Plan, PlanRequest

YARN = {
    "text_config": {
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "rope_type": "yarn",
            "rope_theta": 10000000,
            "partial_rotary_factor": 0.25,
            "factor": 4.0,
            "original_max_position_embeddings": 262144,
        }
    }
}
"""As the 35B's card has it."""


def mixture(dense: dict[str, Any]) -> dict[str, Any]:
    """The 35B-A3B's sizes."""
    text = dense["text_config"]
    del text["intermediate_size"]
    text |= {
        "model_type": "qwen3_5_moe_text",
        "hidden_size": 2048,
        "num_hidden_layers": 40,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "linear_num_value_heads": 32,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
    }
    return dense | {"model_type": "qwen3_5_moe"}


@pytest.fixture
def big(published_27b: dict[str, Any]) -> ModelConfig:
    return ModelConfig.from_dict(published_27b)


@pytest.fixture
def many(published_27b: dict[str, Any]) -> ModelConfig:
    return ModelConfig.from_dict(mixture(published_27b))


def test_the_35bs_keys_and_values_by_hand(many: ModelConfig) -> None:
    """10 layers x 2 heads x 256 x 2 are 10 KiB a token in FP8; both heads are on two of four ranks."""
    found = {each.tokens: each for each in contexts(Plan(many, PlanRequest(4096)))}
    assert tuple(found) == LENGTHS
    for tokens, each in found.items():
        assert each.kv_bytes == {"bfloat16": tokens * 20 * 1024, "fp8": tokens * 10 * 1024}
        assert each.held_bytes == {"bfloat16": tokens * 40 * 1024, "fp8": tokens * 20 * 1024}
        assert each.stretched == (tokens > 262144)
    assert found[1048576].kv_bytes["fp8"] / 1e9 == pytest.approx(10.7, abs=0.05)
    assert found[1048576].fits["fp8", "fp8"]
    assert found[1048576].fits["fp8-mlp", "bfloat16"]
    assert not found[1048576].fits["bf16", "bfloat16"]


def test_the_27bs_keys_and_values_by_hand(big: ModelConfig) -> None:
    found = {each.tokens: each for each in contexts(Plan(big, PlanRequest(4096)))}
    for tokens, each in found.items():
        assert each.held_bytes == each.kv_bytes == {"bfloat16": tokens * 64 * 1024, "fp8": tokens * 32 * 1024}
    assert found[1048576].fits["fp8-mlp", "fp8"]
    assert not found[1048576].fits["fp8-mlp", "bfloat16"]
    assert all(found[262144].fits.values())


def test_used_is_what_the_plan_of_that_length_uses(big: ModelConfig) -> None:
    asked = PlanRequest(4096, 8, 5, mtp=True)
    (found,) = contexts(Plan(big, asked), (65536,))
    one = Plan(big, PlanRequest(65536, 1, 5, mtp=True))
    assert found.used_bytes["bf16", "bfloat16"] == 4 * one.used_bytes
    halved = Plan(big, PlanRequest(65536, 1, 5, mtp=True, fp8_kv=True))
    names = ("KV", "draft layer cache")
    sizes = [{line.name: line.rank_bytes for line in plan.lines} for plan in (one, halved)]
    assert {name for name in sizes[0] if sizes[0][name] != sizes[1][name]} <= set(names)
    assert 2 * sizes[1]["KV"] == sizes[0]["KV"]


def test_a_mixtures_weights_by_hand(many: ModelConfig) -> None:
    found = {line.name: line.rank_bytes for line in Plan(many, PlanRequest(4096)).lines}
    assert found["weights: mlp"] == 40 * 3 * 2048 * 512 * (256 + 1) * 2 // 4
    assert found["weights: routers"] == 40 * 2048 * (256 + 1) * 2
    assert sum(size for name, size in found.items() if name.startswith("weights")) * 4 / 1e9 == pytest.approx(69, abs=1)


def test_a_length_beyond_the_models_own_needs_consent(big: ModelConfig, published_27b: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="VLLM_ALLOW_LONG_MAX_MODEL_LEN") as caught:
        Plan(big, PlanRequest(262145))
    assert "hf-overrides" in caught.value.remedy
    assert caught.value.field == "max_model_len"
    Plan(big, PlanRequest(262145, allow_long=True))
    published_27b["text_config"]["rope_parameters"] |= YARN["text_config"]["rope_parameters"]
    long = ModelConfig.from_dict(published_27b)
    assert Plan(long, PlanRequest(1048576, fp8_kv=True)).limits["max_num_seqs"] is not None
    with pytest.raises(ConfigError, match="1048576 tokens"):
        Plan(long, PlanRequest(1048577))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        app([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert isinstance(done.value.code, int)
    return done.value.code, out, err


def test_the_command_prints_the_table_and_takes_overrides(
    published_27b: dict[str, Any], tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", raising=False)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(mixture(published_27b)))
    asked = ("plan", "--model", file, "--max-model-len", 1010000, "--weights", "fp8", "--kv-cache-dtype", "fp8")
    code, _, err = run(capsys, *asked)
    assert code
    assert "VLLM_ALLOW_LONG_MAX_MODEL_LEN" in err
    code, out, _ = run(capsys, *asked, "--hf-overrides", json.dumps(YARN))
    assert not code
    assert "10 layers x 2 heads x 256 x 2: bfloat16 20 KiB, fp8 10 KiB" in out
    assert "2 KV heads over 4 ranks: 2 ranks hold each" in out
    assert "each head on 2 ranks" in out
    code, out, _ = run(capsys, *asked, "--hf-overrides", json.dumps(YARN), "--json")
    longest = json.loads(out)["contexts"][-1]
    assert longest["kv_bytes"]["fp8"] == 10 * GIB
    assert {pair["fits"] for pair in longest["plans"] if (pair["weights"], pair["kv"]) == ("fp8", "fp8")} == {True}
    for wrong in ("{", "[]"):
        code, _, err = run(capsys, *asked, "--hf-overrides", wrong)
        assert code
        assert "hf-overrides" in err
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    assert not run(capsys, *asked)[0]
