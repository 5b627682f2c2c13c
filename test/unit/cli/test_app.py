"""The `qwen36` command as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from qwen36_cli import app
from qwen36_neuron.config import ModelConfig


def run(*arguments: str) -> int:
    """Run the command and give its exit code."""
    with pytest.raises(SystemExit) as done:
        app(arguments)
    assert isinstance(done.value.code, int)
    return done.value.code


def test_make_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "demo"
    assert run("make-checkpoint", str(folder), "--preset", "tiny", "--mtp", "--seed", "3") == 0
    assert "6.3 M parameters" in capsys.readouterr().out
    assert ModelConfig.from_pretrained(folder).num_mtp_layers == 1


def test_a_configuration_error_is_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("")
    assert run("make-checkpoint", str(tmp_path)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"error: folder={str(tmp_path)!r}: is not empty. Give a new folder, or remove this one first.\n"
    )


@pytest.mark.parametrize("arguments", [["plan"], ["unknown"], ["plan", "--model", "x", "--max-model-len", "many"]])
def test_bad_usage_has_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert "make-checkpoint" in out
    assert "plan" in out


def test_generate_prints_what_the_runtime_generates(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "--model", str(tiny_checkpoint), "--prompt", "Hello", "--max-tokens", "12"]
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert len(AutoTokenizer.from_pretrained(tiny_checkpoint)(printed)["input_ids"]) > 6
    assert run(*arguments) == 0
    assert capsys.readouterr().out == printed
    assert run(*arguments, "--raw") == 0
    assert capsys.readouterr().out != printed
