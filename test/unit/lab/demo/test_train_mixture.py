"""The training script on a small mixture of experts, and its checkpoint as transformers and the runtime read it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml  # type: ignore[import-untyped]

from qwen36_lab.demo.training import TrainingConfig
from qwen36_lab.reference import transformers_model
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.runtime import Output, Row, RuntimeConfig, Step, open_runtime

SCRIPTS = Path(__file__).resolve().parents[4] / "scripts"
SMALL = {
    "num_layers": 4,
    "hidden_size": 128,
    "intermediate_size": 16,
    "num_experts": 8,
    "shared_intermediate_size": 32,
    "num_query_heads": 1,
    "num_kv_heads": 1,
    "num_key_heads": 1,
    "num_value_heads": 1,
    "vocab_size": 1024,
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_demo", SCRIPTS / "train_demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_few_steps_leave_a_checkpoint_that_both_read_alike(script: ModuleType, tmp_path: Path) -> None:
    raw = yaml.safe_load((SCRIPTS / "train_demo_moe.yaml").read_text())
    raw["model"] |= SMALL
    raw["warm_up"] = 2
    raw["phases"] = [{**raw["phases"][0], "rows": 1, "steps": 20}]
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(raw))
    script.train(config, tmp_path / "out", 0, 0, 1)
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] < 6.3  # of 6.9 to begin with
    assert 0.9 < lines[0]["balance"] < 1.5
    folder = tmp_path / "checkpoint"
    script.export(config, tmp_path / "out", folder)

    reference = transformers_model(folder)
    tokens = torch.randint(0, 1024, (100,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        expected = reference(input_ids=torch.tensor([tokens])).logits[0]
    run = open_runtime(RuntimeConfig(folder, kernels="torch", max_model_len=128, max_step_tokens=128, num_blocks=4))
    logits = run.run(Step((Row("test", 1, tokens, 0, (1, 2), output=Output.ALL_LOGITS),))).rows[0].logits
    assert logits is not None
    assert (logits - expected).abs().max() <= 2e-5


def test_the_runs_checkpoint_is_small(script: ModuleType) -> None:
    run = TrainingConfig.read(SCRIPTS / "train_demo_moe.yaml")
    tokenizer = script.AutoTokenizer.from_pretrained(SCRIPTS.parent / "assets" / "demo-checkpoint")
    raw = script.config_json(script.CheckpointSpec(**run.model), tokenizer)
    assert 2 * script.ModelConfig.from_dict(raw).num_parameters(include_mtp=True) < 24e6


@pytest.mark.parametrize("change", [{"balance": 0.0}, {"model": {"num_layers": 4}}], ids=str)
def test_balance_goes_with_experts(change: dict[str, object], tmp_path: Path) -> None:
    raw = yaml.safe_load((SCRIPTS / "train_demo_moe.yaml").read_text())
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(raw | change))
    with pytest.raises(ConfigError, match=r"balance.*num_experts"):
        TrainingConfig.read(file)
