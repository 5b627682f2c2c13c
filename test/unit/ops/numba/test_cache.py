"""The folder of compiled code is named by every file that code is compiled from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import qwen36_neuron
from qwen36_neuron.ops.numba import scalar

PACKAGE = Path(qwen36_neuron.__file__).parent
OPERATIONS = Path("ops")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package's sources, to be changed."""
    return Path(shutil.copytree(PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__")))


def test_a_change_of_any_source_gives_another_folder(copy: Path) -> None:
    names = [scalar.cache_folder(copy / OPERATIONS).name]
    assert names[0] == scalar.CACHE_FOLDER.name
    for source in scalar.compiled_sources(copy / OPERATIONS):
        source.write_text(source.read_text() + "\n# changed\n")
        names.append(scalar.cache_folder(copy / OPERATIONS).name)
    assert len(set(names)) == len(names)


def test_sources_are_those_whose_constants_are_compiled_in() -> None:
    """All that has a compiled function, and those modules that hold a number or a function of one."""
    listed = {source.relative_to(PACKAGE).as_posix() for source in scalar.compiled_sources(PACKAGE / OPERATIONS)}
    assert {"config.py", "ops/gated_delta_rule/chunk_cpu.py"} <= listed
    sources = {source: source.read_text() for source in PACKAGE.rglob("*.py")}
    compiled = {source.relative_to(PACKAGE).as_posix() for source, text in sources.items() if "@compiled" in text}
    assert {"ops/attention/numba_step.py", "ops/gated_delta_rule/numba.py", "ops/numba/vectors.py"} <= compiled
    assert compiled <= listed
