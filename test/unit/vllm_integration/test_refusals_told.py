"""How a refused start ends: by one message, in every process that it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qwen36_neuron.errors import ConfigError
from vllm_integration import refusals

REFUSED = ConfigError("dtype", "float8", "is not implemented", "Use float32")


def test_a_refusal_that_nobody_catches_is_its_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: others.append(error))
    refusals.tell_briefly()
    hook = sys.excepthook
    refusals.tell_briefly()
    assert sys.excepthook is hook
    failed, other = RuntimeError("Engine core initialization failed. See root cause above."), RuntimeError("another")
    for error in (REFUSED, failed, other):
        sys.excepthook(type(error), error, None)
    assert capsys.readouterr().err.splitlines() == [f"error: {REFUSED}", f"error: {failed}"]
    assert others == [other]


def test_an_engine_of_its_own_process_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    @refusals.ends_the_engine
    def start(count: int) -> int:
        if count > 1:
            raise REFUSED
        return count

    assert start(1) == 1
    with pytest.raises(ConfigError):
        start(2)
    monkeypatch.setattr(refusals.multiprocessing, "parent_process", lambda: object())
    assert start(1) == 1
    with pytest.raises(SystemExit) as ended:
        start(2)
    assert ended.value.code == 1


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    program = (
        "from vllm.engine.arg_utils import AsyncEngineArgs\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())\n"
        "arguments = parser.parse_args(['--model', '.', '--kv-cache-dtype', 'fp8_e5m2'])\n"
        "AsyncEngineArgs.from_cli_args(arguments).create_engine_config()\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert [line for line in ran.stderr.splitlines() if line.startswith("error: ")] == [
        "error: kv_cache_dtype='fp8_e5m2': is not served: of two digits instead of three, which is twice the "
        "error of fp8_e4m3 in the same memory. Use fp8, or auto."
    ]
