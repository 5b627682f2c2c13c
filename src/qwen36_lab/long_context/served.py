"""Needles asked for over HTTP: the start script, vLLM in its own processes and the chat proxy, and what they hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from ..serving.http import SCRIPT, free_port
from . import model

START_TIMEOUT, ANSWER_TIMEOUT = 600, 3600
DEPTHS = dict(enumerate((0.0, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)))
"""Where the needle of each key lies, from the first token to the one before the question."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one key.

    Attributes:
        depth: of its needle; seconds: until the answer; cached: tokens that were not run again.
    """

    key: int
    depth: float
    prompt_tokens: int
    cached: int
    seconds: float
    found: str
    expected: str

    @property
    def right(self) -> bool:
        return self.found == self.expected


class Watch:
    """The most memory that a process and its descendants hold together, looked at four times a second."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._pid, self._ended = pid, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        import psutil  # type: ignore[import-untyped]

        while not self._ended.wait(0.25):
            try:
                root = psutil.Process(self._pid)
                held = [process.memory_info().rss for process in (root, *root.children(recursive=True))]
            except psutil.NoSuchProcess:
                continue
            self.peak = max(self.peak, sum(held))


def ask(folder: Path, tokens: int, positions: int, kernels: str, chunk: int = 8192) -> dict[str, Any]:
    """Serve the checkpoint of `model.make` with YaRN and ask for every needle of a prompt of `tokens` tokens.

    Args:
        positions: that the checkpoint was made for; YaRN takes it to four times as many.
        kernels: of the CPU runtime.
        chunk: tokens that a step runs at most.
    Returns:
        Answers, seconds and bytes.
    """
    port = free_port()
    command = [
        *(SCRIPT, "--model", folder, "--port", port, "--backend-port", free_port(), "--served-model-name", "needle"),
        *("--max-model-len", 4 * positions, "--max-num-seqs", 1, "--max-num-batched-tokens", chunk),
        *("--kernels", kernels, "--kv-cache-memory-bytes", (4 * positions + 64) * 2 * model.HEAD * 4),
        *("--", "--hf-overrides", json.dumps(model.yarn(positions))),
    ]
    server = subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, "PYTHON": sys.executable},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    watch = Watch(server.pid)
    try:
        http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_TIMEOUT, trust_env=False)
        _wait_ready(http, server)
        idle = watch.peak
        answers = [_ask(http, folder, tokens, key) for key in DEPTHS]
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(60)
        finally:
            watch.close()
    return {
        "tokens": tokens,
        "positions": positions,
        "yarn_factor": 4,
        "kernels": kernels,
        "right": sum(answer.right for answer in answers),
        "answers": [asdict(answer) for answer in answers],
        "rss_when_ready_bytes": idle,
        "peak_rss_bytes": watch.peak,
        "kv_bytes": tokens * 2 * model.HEAD * 4,
        "scores_of_a_step_at_once_bytes": chunk * tokens * 4,
    }


def _ask(http: httpx.Client, folder: Path, tokens: int, key: int) -> Answer:
    from transformers import AutoTokenizer

    values = {each: (5 * each + 3) % model.VALUES for each in DEPTHS}
    ids = model.prompt(tokens, DEPTHS, values, key)
    asked = {"model": "needle", "prompt": ids, "max_tokens": 1, "temperature": 0}
    started = time.perf_counter()
    answer = http.post("/v1/completions", json=asked)
    answer.raise_for_status()
    seconds, body = time.perf_counter() - started, answer.json()
    expected = AutoTokenizer.from_pretrained(folder).decode([model.ANSWERS + values[key]])
    details = body["usage"].get("prompt_tokens_details") or {}
    cached = int(details.get("cached_tokens") or 0)
    text = body["choices"][0]["text"]
    return Answer(key, DEPTHS[key], body["usage"]["prompt_tokens"], cached, round(seconds, 2), text, expected)


def _wait_ready(http: httpx.Client, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if http.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"the server did not become ready (exit status {server.poll()})")
