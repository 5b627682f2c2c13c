"""`qwen36 generate`: the shipped checkpoint by default, as many threads as there are cores for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command import qwen36
from transformers import AutoTokenizer

from qwen36_cli import generate as module
from qwen36_neuron.openmp import SPINS

SETS = """
import os, sys
from qwen36_cli import app
try:
    app(sys.argv[1:])
except SystemExit:
    print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
"""


def test_it_prints_what_the_runtime_generates(tiny_checkpoint: Path) -> None:
    words = ["generate", "--model", tiny_checkpoint, "--prompt", "Hello", "--max-tokens", "12"]
    first = qwen36(*words)
    assert first.exit_code == 0, first.stderr
    assert len(AutoTokenizer.from_pretrained(tiny_checkpoint)(first.stdout)["input_ids"]) > 6
    assert qwen36(*words, "--no-share-cores").stdout == first.stdout
    assert qwen36(*words, "--raw").stdout != first.stdout


def test_the_shipped_checkpoint_answers_by_default() -> None:
    words = ("--prompt", "What is 17 + 25?", "--no-thinking", "--max-tokens", "32", "--kernels", "torch")
    ended = qwen36("generate", *words)
    assert ended.exit_code == 0, ended.stderr
    assert "42" in ended.stdout


def test_without_a_shipped_checkpoint_it_asks_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEMO", tmp_path)
    ended = qwen36("generate", "--prompt", "x")
    assert ended.exit_code == 2
    assert ended.stderr == (
        "error: model=None: no checkpoint comes with this installation. Give --model a folder or an id.\n"
    )


class Governor:
    """Counts what it is asked."""

    made: list[Governor]

    def __init__(self, most: int) -> None:
        self.most, self.steps, self.released = most, 0, 0
        Governor.made.append(self)

    def before_step(self) -> None:
        self.steps += 1

    def release(self) -> None:
        self.released += 1


def test_threads_are_governed_step_by_step_and_given_back(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Governor.made = []
    monkeypatch.setattr(module, "ThreadGovernor", Governor)
    before = torch.get_num_threads()
    words = ("--model", tiny_checkpoint, "--prompt", "Hello", "--raw", "--max-tokens", "5", "--kernels", "torch")
    try:
        assert qwen36("generate", *words, "--threads", "2").exit_code == 0
        assert qwen36("generate", *words, "--no-share-cores").exit_code == 0
    finally:
        torch.set_num_threads(before)
    (governor,) = Governor.made
    assert (governor.most, governor.released) == (2, 1)
    assert 1 <= governor.steps <= 5


def test_threads_are_given_back_after_an_error(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("a step failed")

    Governor.made = []
    monkeypatch.setattr(module, "ThreadGovernor", Governor)
    monkeypatch.setattr(module, "continued", fails)
    with pytest.raises(RuntimeError, match="a step failed"):
        qwen36("generate", "--model", tiny_checkpoint, "--prompt", "x", "--kernels", "torch")
    assert Governor.made[0].released == 1


@pytest.mark.parametrize(
    ("words", "given", "set_to"),
    [
        (["generate", "--prompt", "x", "--model", "/nowhere"], {}, str(SPINS)),
        (["generate", "--prompt", "x", "--model", "/nowhere"], {"GOMP_SPINCOUNT": "7"}, "7"),
        (["compare", "--reference", "/nowhere", "--candidate", "/nowhere", "--text", "x"], {}, str(SPINS)),
    ],
)
def test_openmp_is_told_how_to_wait_before_torch_is_imported(
    words: list[str], given: dict[str, str], set_to: str
) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", SETS, *words], env=clean | given, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{set_to} True\n", done.stderr
