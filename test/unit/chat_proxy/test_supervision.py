"""The start script watches both processes and ends honestly, whoever ends first. vLLM is played by a small server."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "start_vllm_server.sh"

ENGINE = """
import http.server, json, os, subprocess, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
subprocess.Popen(["sleep", "600"])  # the engine core, which nobody but the script ends
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status=200):
        body = json.dumps({"data": [{"id": "m"}]}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer()
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "exit" in body:
            os._exit(body["exit"])
        self.answer()
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python that plays vLLM where it is asked to run it, and is itself otherwise."""
    (tmp_path / "engine.py").write_text(ENGINE)
    stub = tmp_path / "python"
    stub.write_text(
        f'#!/bin/sh\ncase "$*" in *vllm.entrypoints*) exec {sys.executable} {tmp_path}/engine.py "$@" ;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    stub.chmod(0o755)
    return stub


class Script:
    """The script, running, with both of its children ready."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url
        self.family = psutil.Process(process.pid).children(recursive=True)

    def child(self, word: str) -> psutil.Process:
        return next(member for member in self.family if word in " ".join(member.cmdline()))

    def ended(self) -> tuple[int, str]:
        """The exit status and what was said, once nothing that was started is alive."""
        _, said = self.process.communicate(timeout=20)
        _, alive = psutil.wait_procs(self.family, timeout=5)
        assert alive == []
        return self.process.returncode, said


@pytest.fixture
def script(fakes, python: Path, tmp_path: Path) -> Iterator[Script]:
    (tmp_path / "config.json").write_text("{}")
    port, backend_port = fakes.free_port(), fakes.free_port()
    process = subprocess.Popen(
        [SCRIPT, "--model", tmp_path, "--port", str(port), "--backend-port", str(backend_port)],
        env={**os.environ, "PYTHON": str(python)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 30
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                    break
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        running = Script(process, url)
        yield running
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for member in [process, *family]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_that_was_asked_for_is_status_0(script, number):
    script.process.send_signal(number)
    status, said = script.ended()
    assert status == 0
    assert "proxy status 0" in said


@pytest.mark.parametrize(("leaves", "status"), [(7, 7), (0, 1)])
def test_an_engine_that_ends_ends_all_with_an_error(script, leaves, status):
    with contextlib.suppress(httpx.TransportError):
        httpx.post(f"{script.url}/v1/completions", json={"exit": leaves}, trust_env=False)
    assert script.ended()[0] == status


def test_a_killed_proxy_ends_all_with_an_error(script):
    script.child("chat_proxy").kill()
    status, said = script.ended()
    assert status == 128 + signal.SIGKILL
    assert "the proxy ended" in said
