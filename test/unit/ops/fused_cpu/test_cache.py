"""The folder of compiled code is named by every file that code is compiled from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import qwen36_neuron
from qwen36_neuron.ops.fused_cpu import scalar

PACKAGE = Path(qwen36_neuron.__file__).parent
HERE = Path(scalar.__file__).parent.relative_to(PACKAGE)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package's sources, to be changed."""
    return Path(shutil.copytree(PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__")))


def test_a_change_of_any_source_gives_another_folder(copy: Path) -> None:
    names = [scalar.cache_folder(copy / HERE).name]
    assert names[0] == scalar.CACHE_FOLDER.name
    for source in scalar.compiled_sources(copy / HERE):
        source.write_text(source.read_text() + "\n# changed\n")
        names.append(scalar.cache_folder(copy / HERE).name)
    assert len(set(names)) == len(names)


def test_sources_are_those_whose_constants_are_compiled_in() -> None:
    """Of the package's modules outside the folder, those that hold a number or a function of a compiled function."""
    listed = {source.relative_to(PACKAGE).as_posix() for source in scalar.compiled_sources(PACKAGE / HERE)}
    assert {"config.py", "ops/gated_delta_rule_cpu.py"} <= listed
    assert {source.relative_to(PACKAGE).as_posix() for source in (PACKAGE / HERE).glob("*.py")} <= listed
