"""On a device AWS's own nki takes the interpreter's place: which tests and commands are left there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import qwen36

from qwen36_cli import interpreter
from qwen36_lab.validation.unit_tests import unit_tests

TESTS = Path(__file__).resolve().parents[2]
SIZES = str(TESTS.parent / "src" / "qwen36_lab" / "apc" / "qwen36_27b.json")

NKI = """
import importlib.abc, importlib.machinery, sys
from types import ModuleType
from unittest.mock import MagicMock

def jit(kernel=None, **how):
    return kernel or jit

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return object if name == "NKIObject" else MagicMock(name=name)

class Modules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.startswith("nki.") else None

    def create_module(self, spec):
        module = ModuleType(spec.name)
        module.__getattr__ = __getattr__
        return module

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Modules())
"""
"""A package that is imported as nki is, and that runs nothing."""


@pytest.fixture
def device(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with AWS's own nki."""
    (tmp_path / "nki").mkdir()
    (tmp_path / "nki" / "__init__.py").write_text(NKI)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


@pytest.mark.slow
def test_the_unit_tests_pick_themselves(device: dict[str, str]) -> None:
    """All that is collected can be imported there, and what runs the interpreter is skipped by its mark."""
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    found = subprocess.run(
        [*pytest_here, "--collect-only", TESTS / "unit"], env=device, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout[-3000:]
    assert "unit/nki_kernels/" not in found.stdout
    assert "unit/ops/test_sampling.py" in found.stdout
    ran = subprocess.run(
        [*pytest_here, "-rs", TESTS / "unit" / "lab" / "pricing", TESTS / "unit" / "planning" / "test_estimate.py"],
        env=device,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert "runs the interpreter, and AWS's own nki is installed" in ran.stdout
    assert " passed" in ran.stdout


def test_what_is_not_collected_there_exists() -> None:
    names = re.search(r"^INTERPRETED = \((.*)\)$", (TESTS / "conftest.py").read_text(), re.MULTILINE)
    assert names is not None
    for name in re.findall(r'"(.*?)"', names[1]):
        assert (TESTS / name).exists(), name


@pytest.mark.parametrize("words", [["estimate", "--model", SIZES, "--profile", "4k"], ["bench", "kernels"]])
def test_what_prices_kernels_is_refused_by_name(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "real_nki_present", lambda: True)
    ended = qwen36(*words)
    assert ended.exit_code == 2
    assert "is not there beside AWS's own nki. Run it on a machine without the SDK." in ended.stderr


def test_validation_runs_the_unit_tests(tmp_path: Path) -> None:
    (tmp_path / "test_good.py").write_text("def test_good():\n    pass\n")
    found = unit_tests(tmp_path)
    assert found.passed
    assert found.figures["summary"].startswith("1 passed")
    (tmp_path / "test_bad.py").write_text("def test_bad():\n    assert not 1\n")
    found = unit_tests(tmp_path)
    assert found.passed is False
    assert "test_bad.py::test_bad" in found.problems[0]
    found = unit_tests(tmp_path / "none")
    assert (found.passed, found.problems) == (
        None,
        ["there are no tests beside this installation: run it from a checkout"],
    )
