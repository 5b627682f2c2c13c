"""What a start finds on this machine: a model in the cache, free ports, a Python, and what vLLM says of its flags."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_integration.launcher import machine
from vllm_integration.launcher.errors import Refusal
from vllm_integration.launcher.main import main

from .conftest import Start

CACHE = "hub/models--Qwen--Tiny"


def cached(home: Path, config: dict[str, Any], *files: str) -> Path:
    """A snapshot in a cache of Hugging Face, as a download leaves it."""
    snapshot = home / CACHE / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (home / CACHE / "refs").mkdir()
    (home / CACHE / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text(json.dumps(config))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in files:
        (snapshot / name).write_text("")
    return snapshot


def dry(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A dry run with a cache of its own: the library reads where it is once a process."""
    command = [sys.executable, "-m", "vllm_integration.launcher", "--dry-run", *words]
    environment = {**os.environ, "HF_HOME": str(home)}
    environment.pop("HF_HUB_CACHE", None)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((), ("0", "0")),
        (("-sc", '{"method":"mtp","num_speculative_tokens":3}'), ("3", "3")),
        (("-sc", '{"method":"mtp","num_speculative_tokens":3}', "--lookup-drafts", "8"), ("8", "3")),
        (("-sc", '{"method":"ngram","num_speculative_tokens":5}'), ("5", "0")),
    ],
)
def test_the_audit_asks_for_as_many_drafts_as_a_row_may_have(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], wanted: tuple[str, str]
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="65")

    monkeypatch.setattr(machine.subprocess, "run", run)
    assert machine.audit(start("--device", "neuron", "--artifact", tmp_path, *words)) == 65
    (command,) = commands
    assert tuple(command[command.index(flag) + 1] for flag in ("--max-drafts", "--max-proposals")) == wanted


def test_an_id_is_taken_from_the_cache_or_its_download_is_named(tmp_path: Path, published_27b: dict[str, Any]) -> None:
    ports = ("--port", str(free_port()), "--backend-port", str(free_port()))
    done = dry(tmp_path, "Qwen/Tiny", *ports)
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith("Download it first: hf download Qwen/Tiny")

    snapshot = cached(tmp_path, published_27b, "model-1.safetensors", "tokenizer.json")
    done = dry(tmp_path, "--model", "Qwen/Tiny", "--revision", "main", *ports)
    assert done.returncode == 2
    assert "is in the cache without model-2.safetensors" in done.stderr
    assert done.stderr.rstrip().endswith("hf download Qwen/Tiny --revision main")

    (snapshot / "model-2.safetensors").write_text("")
    done = dry(tmp_path, "Qwen/Tiny", *ports)
    assert done.returncode == 0, done.stderr
    assert f"serve {snapshot} --served-model-name Qwen/Tiny " in done.stdout
    assert "hf download Qwen/Tiny --revision v2" in dry(tmp_path, "Qwen/Tiny", "--revision", "v2", *ports).stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_dry_run_checks_the_ports_too(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for flag, other in (("--port", "--backend-port"), ("--backend-port", "--port")):
            assert main(["--model", str(model), "--dry-run", flag, port, other, str(free_port())]) == 2
            printed = capsys.readouterr()
            assert f"{flag} {port} on 127.0.0.1 is in use" in printed.err
            assert printed.out == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--no-such-flag", "3"], "vllm serve refuses --no-such-flag 3: unrecognized arguments: --no-such-flag 3"),
        (["--enable-lora"], "vllm serve refuses --enable-lora: enable_lora=True: there are no adapters."),
        (["--max-logprobs", "x"], "vllm serve refuses --max-logprobs x: argument --max-logprobs: "),
        (["--hf-overrides", '{"text_config": {"num_hidden_layers": -1}}'], "num_hidden_layers"),
    ],
)
def test_a_dry_run_lets_vllm_read_what_follows(
    model: Path, capfd: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    ports = ["--port", str(free_port()), "--backend-port", str(free_port())]
    assert main(["--model", str(model), "--dry-run", *ports, "--", *words]) == 2
    printed = capfd.readouterr()
    assert says in printed.err
    assert printed.out == ""


def test_what_vllm_says_of_its_flags_is_the_refusal(start: Start, tmp_path: Path) -> None:
    """Its error alone where it marks one, else its last line; flags that it takes are no refusal."""
    launch = start("--python", tmp_path / "python", "--", "--seed", "7")
    for script, says in (
        ("echo first >&2; echo 'vllm serve: error: too many' >&2; exit 2", "too many"),
        ("echo first >&2; echo 'ValueError: of no use' >&2; exit 1", "ValueError: of no use"),
        ("exit 1", "nothing"),
        ('[ "$3" = serve ] && [ "$4" = x ]', None),
    ):
        (tmp_path / "python").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "python").chmod(0o755)
        if says is None:
            machine.check_flags(launch, ["python", "-m", "vllm", "serve", "x"], os.environ)
            continue
        with pytest.raises(Refusal) as caught:
            machine.check_flags(launch, ["python", "-m", "vllm", "serve", "x"], os.environ)
        assert str(caught.value) == f"vllm serve refuses --seed 7: {says}"


def test_an_address_that_is_not_ours_is_named(start: Start) -> None:
    with pytest.raises(Refusal, match=r"--host 192\.0\.2\.1 cannot be listened on"):
        machine.check(start("--host", "192.0.2.1", "--port", free_port()))


def test_a_python_without_vllm_is_refused(start: Start, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no such program"):
        machine.check(start("--python", tmp_path / "python"))
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    with pytest.raises(Refusal, match="has no vllm"):
        machine.check(start("--python", bare))


def test_the_launcher_takes_neither_torch_nor_vllm(model: Path) -> None:
    code = """
import sys
from qwen36_cli import app
try:
    app(sys.argv[1:])
except SystemExit as ended:
    assert ended.code == 0
print([name for name in ("torch", "vllm", "transformers", "httpx", "numpy") if name in sys.modules])
"""
    ports = ["--port", str(free_port()), "--backend-port", str(free_port())]
    words = ["serve", "--dry-run", "--model", str(model), *ports]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
