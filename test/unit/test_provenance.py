"""Provenance: complete, and silent about the machine's folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen36_neuron import provenance as module
from qwen36_neuron.provenance import provenance

REPOSITORY = Path(module.__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("--quick", "--quick"),
        ("scripts/bench.py", "scripts/bench.py"),
        (str(REPOSITORY / "scripts" / "bench.py"), "scripts/bench.py"),
        ("/some/where/checkpoint", "checkpoint"),
        ("--model=/some/where/checkpoint", "--model=checkpoint"),
        ("--scale=0.5", "--scale=0.5"),
    ],
)
def test_the_command_has_no_folder_of_the_machine(argument, shown):
    assert provenance("measured", ["x.py", argument]).command == f"python x.py {shown}"


def test_the_projects_own_command_is_called_by_its_name():
    assert provenance("measured", ["/some/where/bin/qwen36", "bench", "apc"]).command == "qwen36 bench apc"


def test_it_is_complete_and_can_be_written():
    made = json.loads(json.dumps(provenance("modelled", ["x.py"]).as_dict()))
    assert made["kind"] == "modelled"
    assert made["machine"]["cores"] >= 1
    assert made["packages"]["torch"]
    assert made["commit"]
    assert made["date"].endswith("+00:00")


def test_without_a_repository_the_commit_is_unknown(tmp_path):
    assert module._commit(tmp_path) == "unknown"


def test_the_commit_is_that_of_the_start(monkeypatch):
    monkeypatch.setattr(module, "_commit", lambda repository: "a later one")
    assert provenance("measured", ["x.py"]).commit != "a later one"
