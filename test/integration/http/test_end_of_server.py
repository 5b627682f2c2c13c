"""How a server ends: drained when asked, and honestly when its engine dies."""

from __future__ import annotations

import json
import signal
import threading

import httpx
import psutil
import pytest

pytestmark = [pytest.mark.http, pytest.mark.slow]

SHORT = {"model": "tiny", "prompt": "Once", "max_tokens": 1}
LONG = {"model": "tiny", "prompt": "Once", "max_tokens": 1500, "stream": True, "ignore_eos": True}


class Reader(threading.Thread):
    """Reads a long stream to its end, in the background."""

    def __init__(self, server, body) -> None:
        super().__init__(daemon=True)
        self.server, self.body = server, body
        self.began = threading.Event()
        self.lines: list[str] = []
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            with (
                httpx.Client(base_url=self.server.url, timeout=120, trust_env=False) as http,
                http.stream("POST", "/v1/completions", json=self.body) as response,
            ):
                for line in filter(None, response.iter_lines()):
                    self.lines.append(line)
                    self.began.set()
        except httpx.TransportError as error:
            self.failure = error


def started(server, **change) -> Reader:
    reader = Reader(server, {**LONG, **change})
    reader.start()
    assert reader.began.wait(120)
    return reader


def test_sigterm_lets_the_running_stream_end_and_leaves_no_process(own_server):
    family = own_server.descendants()
    assert len(family) >= 3  # The proxy, vLLM's server and its engine.
    reader = started(own_server, max_tokens=200)
    own_server.terminate()
    while (refused := own_server.http.post("/v1/completions", json=SHORT)).status_code == 200:
        pass  # The signal has not reached the proxy yet.
    assert refused.status_code == 503
    assert "shutting down" in refused.json()["error"]["message"]
    assert reader.is_alive()  # The drain waits for it.
    reader.join(160)
    assert reader.failure is None
    assert reader.lines[-1] == "data: [DONE]"
    assert json.loads(reader.lines[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert own_server.status() == 0
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []


def test_a_killed_engine_fails_its_requests_and_ends_the_server_with_an_error(own_server):
    family = own_server.descendants()
    (engine,) = [process for process in family if "EngineCore" in " ".join(process.cmdline())]
    reader = started(own_server)
    engine.send_signal(signal.SIGKILL)

    reader.join(120)
    assert reader.lines[-1] != "data: [DONE]" or "error" in reader.lines[-2]
    assert "error" in " ".join(reader.lines[-2:]) or reader.failure is not None

    # Until all is down, every answer is an honest error; then nobody answers.
    statuses = set()
    while own_server.process.poll() is None:
        try:
            response = own_server.http.post("/v1/completions", json={**LONG, "stream": False}, timeout=30)
        except httpx.TransportError:
            break
        statuses.add(response.status_code)
        assert response.json()["error"]["message"]
    assert statuses <= {500, 502, 503}
    assert own_server.status() != 0
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
