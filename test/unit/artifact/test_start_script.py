"""The start script audits the artifact before it starts anything."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qwen36_neuron.artifact.check import check
from qwen36_neuron.artifact.manifest import write_manifest
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.graph.profile import Profile

from .conftest import PROFILES

SCRIPT = PROFILES.parent / "scripts" / "start_vllm_server.sh"

FAKE = f"""#!/bin/sh
[ "$2" = vllm.entrypoints.cli.main ] && exec echo "$@"
[ "$2" = vllm_integration.launcher ] && shift 2 && exec {sys.executable} -c '
import sys
from vllm_integration.launcher import machine, main
machine.DEVICES = "/dev/null"
sys.exit(main(sys.argv[1:]))' "$@"
exec {sys.executable} "$@"
"""
"""A Python that sees a device, and prints the arguments of vLLM instead of starting it."""


@pytest.fixture
def artifact(tmp_path: Path, tiny_checkpoint: Path, tiny_profile: Profile) -> Path:
    (tmp_path / "model.pt").write_bytes(b"graphs")
    write_manifest(check(tiny_profile, ModelConfig.from_pretrained(tiny_checkpoint)), tiny_checkpoint, tmp_path)
    return tmp_path


def start(model: Path, artifact: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Start for the device."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    python = artifact / "python"
    python.write_text(FAKE)
    python.chmod(0o755)
    sizes = ["--max-model-len", "512", "--max-num-seqs", "2", "--tensor-parallel-size", "1", "--no-proxy"]
    folders = ["--model", str(model), "--artifact", str(artifact)]
    command = ["bash", str(SCRIPT), "--device", "neuron", *folders, *sizes, "--port", port, *more]
    environment = os.environ | {"PYTHON": str(python)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def test_vllm_gets_the_artifacts_number_of_kv_blocks(tiny_checkpoint: Path, artifact: Path) -> None:
    result = start(tiny_checkpoint, artifact, "--slots", "4")
    assert result.returncode == 0, result.stderr
    assert result.stdout.rstrip().endswith("--num-gpu-blocks-override 17")


def test_a_dry_run_audits_and_prints_what_would_run(tiny_checkpoint: Path, artifact: Path) -> None:
    result = start(tiny_checkpoint, artifact, "--slots", "4", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.rstrip().endswith("--num-gpu-blocks-override 17")
    assert "XLA_HANDLE_SPECIAL_SCALAR=1" in result.stderr


def test_a_mismatch_is_named_and_nothing_is_started(tiny_checkpoint: Path, artifact: Path) -> None:
    result = start(tiny_checkpoint, artifact, "--slots", "3")
    assert result.returncode == 2
    assert "--slots: compiled for 4, started with 3. Start with --slots 4" in result.stderr
    assert result.stdout == ""


def test_the_number_of_kv_blocks_cannot_be_contradicted(tiny_checkpoint: Path, artifact: Path) -> None:
    result = start(tiny_checkpoint, artifact, "--slots", "4", "--", "--num-gpu-blocks-override=99")
    assert result.returncode == 2
    assert "the artifact decides" in result.stderr


def test_kernels_must_be_those_that_were_compiled(tiny_checkpoint: Path, artifact: Path) -> None:
    result = start(tiny_checkpoint, artifact, "--slots", "4", "--kernels", "nki")
    assert result.returncode == 2
    assert "--kernels: compiled for 'torch', started with 'nki'. Start with --kernels torch" in result.stderr
    assert start(tiny_checkpoint, artifact, "--slots", "4", "--kernels", "torch").returncode == 0
    result = start(tiny_checkpoint, artifact, "--slots", "4", "--kernels", "interpreter")
    assert "--kernels must be fused, torch or nki on neuron, not 'interpreter'" in result.stderr


def test_candidates_must_be_those_that_were_compiled_or_none(tiny_checkpoint: Path, artifact: Path) -> None:
    result = start(tiny_checkpoint, artifact, "--slots", "4", "--sampling-candidates", "64")
    assert result.returncode == 2
    assert (
        "--sampling-candidates: compiled for 256, started with 64. Start with --sampling-candidates 256"
        in result.stderr
    )
    assert start(tiny_checkpoint, artifact, "--slots", "4", "--sampling-candidates", "0").returncode == 0
    result = start(tiny_checkpoint, artifact, "--slots", "4", "--kernels", "torch", "--sampling-candidates", "256")
    assert result.returncode == 0
