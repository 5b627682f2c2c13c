"""`qwen36 compile` as a person runs it, without a device."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command import Ended, qwen36

from qwen36_neuron.artifact import build
from qwen36_neuron.artifact.check import check
from qwen36_neuron.checkpoint.weight_format import WeightFormat
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.graph.profile import Profile

from .conftest import PROFILES


@pytest.fixture
def run() -> Callable[..., Ended]:
    """Run the command with arguments."""
    return partial(qwen36, "compile")


def test_a_dry_run_of_the_27b_prints_memory_graphs_and_arguments(
    run: Callable[..., Ended], published_27b: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published_27b))
    common = ("--model", tmp_path, "--profile", PROFILES / "128k.yaml", "--dry-run")
    shown = run(*common)
    assert shown.exit_code == 0, shown.stderr
    assert "checkpoint slots" in shown.stdout
    assert "8 sequences of 32768, or 2 of 131072" in shown.stdout
    assert "--experimental-unsafe-fp8e4m3fn-as-fp8e4m3" in shown.stdout
    plan = json.loads(run(*common, "--json").stdout)
    assert plan["memory"]["fits"] is True
    assert len(plan["graphs"]) == 14 + 2 * 4
    assert list(tmp_path.iterdir()) == [tmp_path / "config.json"]


@pytest.mark.interpreter
def test_kernels_instead_of_the_profiles(
    run: Callable[..., Ended], published_27b: dict[str, Any], tmp_path: Path
) -> None:
    """The same graphs; plain ones work in memory that the kernels do not need. What is interpreted is not compiled."""
    (tmp_path / "config.json").write_text(json.dumps(published_27b))
    common = ("--model", tmp_path, "--profile", PROFILES / "4k.yaml")
    plain = json.loads(run(*common, "--dry-run", "--json").stdout)
    nki = json.loads(run(*common, "--dry-run", "--json", "--kernels", "nki").stdout)
    assert (plain["options"]["kernels"], nki["options"]["kernels"]) == ("torch", "nki")
    for one, other in zip(plain["graphs"], nki["graphs"], strict=True):
        assert one["inputs"] == other["inputs"]
        assert one["scratch_bytes"] > other["scratch_bytes"] == 0
    refused = run(*common, "--out", tmp_path / "out", "--kernels", "nki")
    assert refused.exit_code == 2
    assert "kernels='nki': the NKI compiler is not installed" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_drafts_instead_of_the_profiles(
    run: Callable[..., Ended], published_27b: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published_27b))
    ended = run("--model", tmp_path, "--profile", "4k", "--dry-run", "--json", "--max-drafts", "3")
    found = json.loads(ended.stdout)
    assert found["options"]["max_drafts"] == 3
    assert "verify 8 x 4 to 1024" in {graph["name"] for graph in found["graphs"]}
    for more, drafts in (((), 3), (("--max-drafts", "8"), 8)):
        ended = run("--model", tmp_path, "--profile", "4k", "--dry-run", "--json", "--max-proposals", "3", *more)
        found = json.loads(ended.stdout)
        assert (found["options"]["max_drafts"], found["options"]["max_proposals"]) == (drafts, 3)
        names = {graph["name"] for graph in found["graphs"] if graph["tag"] == "draft_model"}
        assert names == {f"draft {rows} x {n} to {size}" for rows in (1, 8) for n in (1, 2, 3) for size in (1024, 4096)}
    refused = run("--model", tmp_path, "--profile", "4k", "--dry-run", "--max-drafts", "2", "--max-proposals", "3")
    assert refused.exit_code == 2
    assert "max_proposals=3: are more drafts than the 2" in refused.stderr
    published_27b["text_config"]["mtp_num_hidden_layers"] = 0
    (tmp_path / "config.json").write_text(json.dumps(published_27b))
    refused = run("--model", tmp_path, "--profile", "4k", "--dry-run", "--max-proposals", "3")
    assert refused.exit_code == 2
    assert "mtp_num_hidden_layers=0" in refused.stderr


def test_weights_only_converts_once_and_finds_it_done_the_next_time(
    run: Callable[..., Ended], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    common = ("--model", tiny_checkpoint, "--weights", "fp8-mlp", "--weights-only", "--out", tmp_path)
    first = run(*common)
    assert first.exit_code == 0, first.stderr
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "checkpoint").iterdir()}
    second = run(*common)
    assert second.stdout == first.stdout == f"checkpoint: {tmp_path / 'checkpoint'}\n"
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "checkpoint").iterdir()} == written
    other = run(*common[:2], "--weights", "fp8", *common[4:])
    assert other.exit_code == 2
    assert "holds another conversion" in other.stderr


def test_what_is_missing_is_said_in_one_line(run: Callable[..., Ended], tiny_checkpoint: Path, tmp_path: Path) -> None:
    for arguments, hint in (
        (("--model", tiny_checkpoint, "--weights-only", "--weights", "fp8-mlp"), "Give --out"),
        (("--model", tiny_checkpoint), "Give --profile"),
        (("--model", tiny_checkpoint, "--profile", tmp_path / "none.yaml"), "no such file"),
        (("--model", tiny_checkpoint, "--profile", "64k"), "one of: 4k, 32k, 128k, 256k, 1m"),
        (("--model", tmp_path, "--profile", "4k"), "no config.json"),
        (("--model", "Qwen/None", "--profile", "4k", "--dry-run"), "`hf download Qwen/None`"),
        (("--model", tiny_checkpoint, "--weights-only", "--weights", "fp8-mlp", "--dry-run"), "Give one of the two"),
        (("--model", tiny_checkpoint, "--profile", "4k", "--json"), "Give --dry-run with it"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert hint in result.stderr
        assert result.stderr.count("\n") == 1


def test_compiling_without_the_sdk_is_refused_before_anything_is_written(
    tiny_checkpoint: Path, tiny_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "SDK", ("neuronxcc_of_another_machine",))
    checked = check(tiny_profile, ModelConfig.from_pretrained(tiny_checkpoint))
    with pytest.raises(ConfigError, match="neuronxcc_of_another_machine"):
        build.compile_artifact(checked, tiny_checkpoint, tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


def test_a_checkpoint_in_another_format_is_not_compiled(
    tiny_checkpoint: Path, tiny_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "SDK", ())
    work = build.quantiser(tiny_checkpoint, tmp_path / "fp8", WeightFormat.FP8_MLP, None)
    assert work is not None
    folder = build.convert(work, lambda _: None)
    checked = check(tiny_profile, ModelConfig.from_pretrained(tiny_checkpoint))
    with pytest.raises(ConfigError, match="Convert it to bf16"):
        build.compile_artifact(checked, folder, tmp_path / "artifact")
    assert build.quantiser(folder, tmp_path / "again", WeightFormat.FP8_MLP, None) is None
    with pytest.raises(ConfigError, match="Give the original"):
        build.quantiser(folder, tmp_path / "again", WeightFormat.FP8, None)


def test_a_damaged_conversion_is_not_used(tiny_checkpoint: Path, tmp_path: Path) -> None:
    work = build.quantiser(tiny_checkpoint, tmp_path / "fp8", WeightFormat.FP8_MLP, None)
    assert work is not None
    build.convert(work, lambda _: None)
    file = next((tmp_path / "fp8").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=file.name):
        build.convert(work, lambda _: None)
