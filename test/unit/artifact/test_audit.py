"""The manifest of an artifact, and an audit that names every difference between it and a start."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from qwen36_neuron.artifact import audit as audit_module
from qwen36_neuron.artifact.audit import LaunchArguments, Mismatch, audit
from qwen36_neuron.artifact.check import check
from qwen36_neuron.artifact.manifest import MANIFEST, read_manifest, write_manifest
from qwen36_neuron.checkpoint.conversion import Conversion
from qwen36_neuron.checkpoint.kv_scales import FILE as KV_SCALES
from qwen36_neuron.checkpoint.kv_scales import KVScales, save_kv_scales
from qwen36_neuron.checkpoint.quantiser import Quantiser
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.graph.profile import Profile

Audit = Callable[..., list[Mismatch]]


@pytest.fixture
def arguments(tiny_checkpoint: Path) -> LaunchArguments:
    return LaunchArguments(tiny_checkpoint, 512, 2, 4, 1, "bfloat16")


@pytest.fixture
def artifact(tmp_path: Path, tiny_checkpoint: Path, tiny_profile: Profile) -> Path:
    """As compiling leaves it: files, then the manifest."""
    folder = tmp_path / "artifact"
    (folder / "weights").mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"graphs")
    (folder / "weights" / "tp0.safetensors").write_bytes(b"weights")
    write_manifest(check(tiny_profile, ModelConfig.from_pretrained(tiny_checkpoint)), tiny_checkpoint, folder)
    return folder


@pytest.fixture
def fields(artifact: Path, arguments: LaunchArguments) -> Callable[..., list[str]]:
    """Names of what an audit finds, with changes to the start."""

    def run(checksums: bool = False, **changes: Any) -> list[str]:
        found = audit(read_manifest(artifact), replace(arguments, **changes), artifact, checksums)
        return [mismatch.field for mismatch in found]

    return run


def test_fp8_keys_and_values(
    tmp_path: Path, tiny_checkpoint: Path, tiny_profile: Profile, arguments: LaunchArguments
) -> None:
    """Both must want them; scales are those beside the graphs, or a file with the same."""
    model = ModelConfig.from_pretrained(tiny_checkpoint)
    scales = KVScales({3: torch.tensor([0.5])}, {3: torch.tensor([0.25])}, "test")
    other = KVScales({3: torch.tensor([1.0])}, {3: torch.tensor([0.25])}, "test")
    for name, each in (("same", scales), ("other", other), (KV_SCALES, scales)):
        save_kv_scales(each, model, tmp_path / name, {})
    fp8 = replace(tiny_profile, options=replace(tiny_profile.options, kv_cache_dtype="fp8"))
    write_manifest(check(fp8, model), tiny_checkpoint, tmp_path)
    manifest = read_manifest(tmp_path)
    assert manifest["kv_scales"] == scales.digest()
    for changes, expected in (
        ({}, ["--kv-cache-dtype"]),
        ({"kv_cache_dtype": "fp8_e4m3"}, []),
        ({"kv_cache_dtype": "fp8", "kv_scales": tmp_path / "same"}, []),
        ({"kv_cache_dtype": "fp8", "kv_scales": tmp_path / "other"}, ["--kv-scales"]),
    ):
        found = audit(manifest, replace(arguments, **changes), tmp_path)  # type: ignore[arg-type]
        assert [mismatch.field for mismatch in found if mismatch.field.startswith("--kv")] == expected


def test_plain_keys_and_values_are_not_started_as_fp8(fields: Callable[..., list[str]]) -> None:
    assert fields(kv_cache_dtype="fp8") == ["--kv-cache-dtype"]


def test_the_start_that_was_compiled_for_passes(fields: Callable[..., list[str]]) -> None:
    assert fields() == []
    assert fields(num_blocks=17) == []
    assert fields(kernels="torch") == []
    assert fields(sampling_candidates=256) == []
    assert fields(sampling_candidates=0) == []  # sampling on the host needs nothing of a graph
    assert fields(max_drafts=0) == []
    assert fields(max_model_len=100) == []  # shorter sequences need nothing else
    assert fields(checksums=True) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"max_model_len": 513}, "--max-model-len"),
        ({"max_num_seqs": 1}, "--max-num-seqs"),
        ({"num_slots": 5}, "--slots"),
        ({"tp_degree": 4}, "--tp-degree"),
        ({"dtype": "float32"}, "--dtype"),
        ({"num_blocks": 18}, "--num-gpu-blocks-override"),
        ({"kernels": "nki"}, "--kernels"),
        ({"sampling_candidates": 64}, "--sampling-candidates"),
        ({"max_drafts": 3}, "--max-drafts"),
    ],
)
def test_every_size_is_compared(fields: Callable[..., list[str]], changes: dict[str, Any], field: str) -> None:
    assert fields(**changes) == [field]


def test_the_remedy_for_candidates_is_what_was_compiled_or_the_host(artifact: Path, arguments: LaunchArguments) -> None:
    manifest, start = read_manifest(artifact), replace(arguments, sampling_candidates=64)
    assert str(*audit(manifest, start, artifact)) == (
        "--sampling-candidates: compiled for 256, started with 64. Start with --sampling-candidates 256, or with 0 to "
        "sample on the host, or compile again."
    )
    manifest["options"]["sampling_candidates"] = 0
    assert str(*audit(manifest, start, artifact)).endswith(
        "compiled for 0, started with 64. Start with --sampling-candidates 0, or compile again."
    )


def test_fewer_drafts_than_compiled_for_need_nothing_and_more_are_refused(
    artifact: Path, arguments: LaunchArguments
) -> None:
    manifest = read_manifest(artifact)
    manifest["options"]["max_drafts"] = 3
    assert audit(manifest, replace(arguments, max_drafts=2), artifact) == []
    assert str(*audit(manifest, replace(arguments, max_drafts=4), artifact)) == (
        "--max-drafts: compiled for 3, started with 4. Start with 3 drafts, or compile again: qwen36 compile "
        f"--model {arguments.model} --profile tiny --weights bf16 --kernels torch --max-drafts 4 --max-proposals 0 "
        "--out DIR."
    )


def test_an_artifact_without_the_draft_layer_is_refused_with_the_command_that_makes_one(
    artifact: Path, arguments: LaunchArguments
) -> None:
    manifest, start = read_manifest(artifact), replace(arguments, max_drafts=3, max_proposals=3)
    of_width, of_layer = audit(manifest, start, artifact)
    assert (of_width.field, of_layer.field) == ("--max-drafts", "--max-proposals")
    assert str(of_layer).startswith(
        "--max-proposals: compiled for 0, started with 3. Start with no drafts of the draft"
    )
    assert str(of_layer).endswith("--max-drafts 3 --max-proposals 3 --out DIR.")
    manifest["options"] |= {"max_drafts": 5, "max_proposals": 2}
    (mismatch,) = audit(manifest, start, artifact)
    assert "Start with 2 drafts of the draft layer" in mismatch.remedy
    assert "--max-drafts 5 --max-proposals 3" in mismatch.remedy
    manifest["options"]["max_proposals"] = 4
    assert audit(manifest, start, artifact) == []


def test_all_mismatches_are_named_at_once(fields: Callable[..., list[str]]) -> None:
    assert fields(max_num_seqs=1, num_slots=0, dtype="float32") == ["--max-num-seqs", "--slots", "--dtype"]


def test_another_network_and_other_weights_are_told_apart(
    fields: Callable[..., list[str]], tiny_checkpoint: Path, demo_checkpoint: Path, tmp_path: Path
) -> None:
    assert fields(model=demo_checkpoint) == ["model configuration", "weights"]
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(content))  # written otherwise, the same network
    assert fields(model=copy) == []
    content["text_config"]["rms_norm_eps"] = 1e-5
    (copy / "config.json").write_text(json.dumps(content))
    assert fields(model=copy) == ["model configuration"]


def test_a_converted_checkpoint_is_not_the_one_it_was_made_from(
    fields: Callable[..., list[str]], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    Quantiser(Conversion(tiny_checkpoint), tmp_path / "fp8").run()
    assert fields(model=tmp_path / "fp8") == ["weights", "number format"]


def test_other_software_is_named(fields: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "packages", lambda: {"torch": "9.9", "neuronx-cc": "2.1"})
    monkeypatch.setattr(audit_module, "source_digests", lambda: {"qwen36_neuron": "other", "nki_kernels": "other"})
    assert set(fields()) == {"torch", "neuronx-cc", "sources of qwen36_neuron", "sources of nki_kernels"}


def test_missing_and_changed_files_are_named(fields: Callable[..., list[str]], artifact: Path) -> None:
    (artifact / "model.pt").write_bytes(b"GRAPHS")  # the same size
    assert fields() == []
    assert fields(checksums=True) == ["file"]
    (artifact / "weights" / "tp0.safetensors").unlink()
    assert fields() == ["file"]


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path, artifact: Path) -> None:
    with pytest.raises(ConfigError, match="Compile it with qwen36 compile"):
        read_manifest(tmp_path)
    (artifact / MANIFEST).write_text('{"format": 99}')
    with pytest.raises(ConfigError, match="format 99"):
        read_manifest(artifact)


def test_the_command_prints_the_blocks_or_every_mismatch(artifact: Path, tiny_checkpoint: Path) -> None:
    sizes = ["--max-model-len", "512", "--max-num-seqs", "2", "--tp-degree", "1", "--dtype", "bfloat16"]
    common = ["--artifact", str(artifact), "--model", str(tiny_checkpoint), *sizes]
    module = [sys.executable, "-m", "qwen36_neuron.artifact.audit"]
    passed = subprocess.run([*module, *common, "--slots", "4"], capture_output=True, text=True)
    assert (passed.returncode, passed.stdout) == (0, "17\n")
    command = typer.Typer()
    command.command()(audit_module.main)
    failed = CliRunner().invoke(command, [*common, "--slots", "5"])
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert "--slots: compiled for 4, started with 5" in failed.stderr
