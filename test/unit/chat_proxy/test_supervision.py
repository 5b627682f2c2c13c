"""The start script watches both processes and ends honestly, whoever ends first. vLLM is played by a small server."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "start_vllm_server.sh"

ENGINE = """
import http.server, json, os, subprocess, sys, time
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
        if "hold" in body:
            open(body["hold"], "w").close()
            time.sleep(600)
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


def until(condition: Callable[[], bool]) -> None:
    """Wait for `condition` to hold. The limit is there to fail a test that waits in vain, on the slowest machine."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def post(url: str, **body: object) -> None:
    """A completion, answered or not."""
    with contextlib.suppress(httpx.TransportError):
        httpx.post(f"{url}/v1/completions", json=body, trust_env=False, timeout=120)


def as_by_default() -> None:
    """The signals that a stop is asked by, as a terminal's first process has them."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Script:
    """The script, running, with both of its children ready."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url
        self.family = psutil.Process(process.pid).children(recursive=True)

    def child(self, word: str) -> psutil.Process:
        return next(member for member in self.family if word in " ".join(member.cmdline()))

    def ended(self) -> tuple[int, str]:
        """The exit status and what was said, once nothing that was started is alive."""
        _, said = self.process.communicate(timeout=120)
        _, alive = psutil.wait_procs(self.family, timeout=60)
        assert alive == []
        return self.process.returncode, said


@contextlib.contextmanager
def started(
    fakes, python: Path, folder: Path, wrapper: Sequence[str] = (), flags: Sequence[str] = ()
) -> Iterator[Script]:
    """The script with both of its children ready, started by `wrapper`, the beginning of a command line."""
    (folder / "config.json").write_text("{}")
    port, backend_port = fakes.free_port(), fakes.free_port()
    process = subprocess.Popen(
        [*wrapper, SCRIPT, "--model", folder, "--port", str(port), "--backend-port", str(backend_port), *flags],
        env={**os.environ, "PYTHON": str(python)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=as_by_default,  # whoever runs the tests may ignore them, as nohup does
    )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/health", trust_env=False).status_code == 200
        return False

    try:
        until(ready)
        yield Script(process, url)
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for member in [process, *family]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


@pytest.fixture
def script(fakes, python: Path, tmp_path: Path) -> Iterator[Script]:
    with started(fakes, python, tmp_path) as running:
        yield running


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_that_was_asked_for_is_status_0(script, number):
    script.process.send_signal(number)
    status, said = script.ended()
    assert status == 0
    assert "proxy status 0" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_can_be_stopped_where_signals_were_ignored_at_its_start(fakes, python, tmp_path, number):
    ignoring = ("bash", "-c", "trap '' INT TERM HUP; exec \"$@\"", "ignoring")
    with started(fakes, python, tmp_path, ignoring) as script:
        script.process.send_signal(signal.SIGHUP)  # as nohup means it: the server outlives its terminal
        script.process.send_signal(number)
        status, said = script.ended()
    assert status == 0
    assert said.count("stopping: running requests") == 1
    assert "proxy status 0" in said


def test_the_proxy_drains_before_vllm_is_stopped_and_a_second_signal_cuts_it(fakes, python, tmp_path):
    with started(fakes, python, tmp_path, flags=("--drain-timeout", "600")) as script, ThreadPoolExecutor(1) as pool:
        held = tmp_path / "held"
        request = pool.submit(post, script.url, hold=str(held))
        until(held.exists)
        script.process.send_signal(signal.SIGINT)
        until(lambda: httpx.get(f"{script.url}/health", trust_env=False).status_code == 503)
        assert script.child("engine.py").is_running()
        assert not request.done()
        script.process.send_signal(signal.SIGINT)
        status, said = script.ended()
    assert status == 0
    assert "stopped: proxy status 0, vLLM status 143" in said


@pytest.mark.parametrize(("leaves", "status"), [(7, 7), (0, 1)])
def test_an_engine_that_ends_ends_all_with_an_error(script, leaves, status):
    post(script.url, exit=leaves)
    assert script.ended()[0] == status


def test_a_killed_proxy_ends_all_with_an_error(script):
    script.child("chat_proxy").kill()
    status, said = script.ended()
    assert status == 128 + signal.SIGKILL
    assert "the proxy ended" in said
