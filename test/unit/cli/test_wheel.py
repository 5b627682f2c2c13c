"""What is in the wheel: the command, its profiles, and what it says where the repository's own files are not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, made from a copy, since building leaves files beside its sources."""
    copy, wheels, folder = (tmp_path_factory.mktemp(name) for name in ("copy", "wheels", "installed"))
    for name in ("src", "nki_kernels", "vllm_integration"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", wheels, copy]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(installed: Path, elsewhere: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qwen36_cli", *map(str, words)],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.interpreter
def test_profiles_are_found_by_name(installed: Path, tmp_path: Path, published_27b: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published_27b))
    common = ("--model", "config.json", "--profile", "32k")
    compiled = run(installed, tmp_path, "compile", *common, "--dry-run", "--json")
    assert compiled.returncode == 0, compiled.stderr
    assert json.loads(compiled.stdout)["profile"] == "32k"
    estimated = run(installed, tmp_path, "estimate", *common, "--json")
    assert estimated.returncode == 0, estimated.stderr
    unknown = run(installed, tmp_path, "estimate", "--model", "config.json", "--profile", "64k")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "one of: 4k, 32k, 128k, 256k, 1m" in unknown.stderr


def test_there_is_no_checkpoint_in_it_and_it_says_so(installed: Path, tmp_path: Path) -> None:
    ended = run(installed, tmp_path, "generate", "--prompt", "x")
    assert ended.returncode == 2
    assert ended.stderr.endswith("no checkpoint comes with this installation. Give --model a folder or an id.\n")


def test_it_has_what_every_command_needs(installed: Path, tmp_path: Path) -> None:
    shown = run(installed, tmp_path, "--help")
    assert shown.returncode == 0, shown.stderr
    for name in ("serve", "compile", "validate", "bench", "plan", "estimate", "compare", "generate"):
        assert f" {name} " in shown.stdout
    assert run(installed, tmp_path, "bench", "--help").returncode == 0
    assert "Not there" not in shown.stdout
