"""A real server at the gate: asked a suite, compared with itself, then held to the lengths that it was accepted for."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from qwen36_cli.app import app
from vllm_integration.launcher import envelope

from .conftest import MODEL, Server, free_ports

pytestmark = pytest.mark.http

OFF = {"chat_template_kwargs": {"enable_thinking": False}, "temperature": 0}
SUITE = {
    "envelope": {"prompt_tokens": 160, "completion_tokens": 48},
    "parameters": OFF,
    "limits": {"agreement": 1.0, "skipped": 1},
    "rows": [
        {"id": "sum", "prompt": "What is 17 + 25?", "hard": True, "expect": {"contains": "42"}},
        {"id": "long", "prompt": "Say something. " * 19, "max_tokens": 8},
        {"id": "beyond", "prompt": "Say something. " * 40, "max_tokens": 8},
    ],
}


@contextlib.contextmanager
def proxy(backend: str, *flags: object) -> Iterator[httpx.Client]:
    """A second chat proxy in front of a server's engine."""
    port, _ = free_ports()
    words = [sys.executable, "-m", "vllm_integration.chat_proxy", "--backend", backend, "--port", port, *flags]
    process = subprocess.Popen([str(word) for word in words])
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as client:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/health").status_code == 200:
                        break
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait(60)


def test_a_server_is_accepted_and_held_to_it(demo: Server, tmp_path: Path) -> None:
    suite, out = tmp_path / "suite.json", tmp_path / "gate.json"
    suite.write_text(json.dumps(SUITE))
    words = ["--candidate", demo.url, "--reference", demo.url, "--suite", suite, "--out", out]
    with pytest.raises(SystemExit) as ended:
        app(["gate", *map(str, words)])
    result = json.loads(out.read_text())
    assert not ended.value.code, result["failures"]
    assert [row["state"] for row in result["rows"]] == ["passed", "passed", "skipped"]
    assert result["measured"]["agreement"] == 1.0

    limits = envelope.read(str(out), "--envelope")
    flags = [word for field, value in limits.items() for word in (f"--{field.replace('_', '-')}", value)]

    def chat(client: httpx.Client, row: int, **more: object) -> httpx.Response:
        messages = [{"role": "user", "content": SUITE["rows"][row]["prompt"]}]  # type: ignore[index]
        return client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages, **OFF, **more})

    with proxy(demo.backend, *flags) as held:
        answer = chat(held, 0).json()
        assert "42" in answer["choices"][0]["message"]["content"]
        assert chat(held, 1).json()["usage"]["completion_tokens"] <= 48
        refused = chat(held, 2)
        assert refused.status_code == 400
        assert "160 at most were accepted here" in refused.json()["error"]["message"]
        assert "Ask for at most 48" in chat(held, 0, max_tokens=49).json()["error"]["message"]
    with proxy(demo.backend, *flags, "--long-context-backend", demo.url) as routed:
        assert chat(routed, 2, max_tokens=8).status_code == 200
        with routed.stream("POST", "/v1/chat/completions", json={
            "model": MODEL, "messages": [{"role": "user", "content": "What is 17 + 25?"}], **OFF,
            "max_tokens": 64, "stream": True,
        }) as response:  # fmt: skip
            lines = [line for line in response.iter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        assert len(lines) > 3
        assert 'qwen36_proxy_routed_total{route="/v1/chat/completions"} 2.0' in routed.get("/metrics").text
