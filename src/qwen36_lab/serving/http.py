"""The same questions asked over HTTP: the start script, vLLM in its own processes and the chat proxy between."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from .sides import Decode, SideConfig, cache_gib

SCRIPT = Path(__file__).parents[3] / "scripts" / "start_vllm_server.sh"
START_TIMEOUT = 300


class HttpServer:
    """A server of its own, and one streaming client a sequence.

    Args:
        config: what it is built from.

    Attributes:
        url: its base.
    """

    def __init__(self, config: SideConfig) -> None:
        port, backend_port = free_port(), free_port()
        command = [
            *(SCRIPT, "--model", config.checkpoint, "--port", port, "--backend-port", backend_port),
            *("--served-model-name", "bench", "--max-model-len", config.max_model_len),
            *("--max-num-seqs", config.max_num_seqs, "--max-num-batched-tokens", config.max_num_batched_tokens),
            *("--kv-cache-memory-bytes", int(cache_gib(config) * 2**30)),
            *([] if config.share_cores else ["--no-share-cores"]),
            *(word for flag, value in config.engine.items() for word in _flag(flag, value)),
        ]
        self._server = subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": str(config.threads)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.url = f"http://127.0.0.1:{port}"
        self._http = httpx.Client(base_url=self.url, timeout=600, trust_env=False)
        self._wait_ready()

    def first_token(self, prompt: list[int], tokens: int = 1) -> float:
        """Seconds to the first of so many tokens."""
        started = time.perf_counter()
        return self._stamps(prompt, tokens)[0] - started

    def decode(self, prompts: list[list[int]], tokens: int) -> Decode:
        with ThreadPoolExecutor(len(prompts)) as pool:
            streams = list(pool.map(lambda prompt: self._stamps(prompt, tokens + 1), prompts))
        # From the moment when all have begun until the first one ends; where one ended before another began, all of it.
        begin, end = max(stamps[0] for stamps in streams), min(stamps[-1] for stamps in streams)
        if end <= begin:
            begin, end = min(stamps[0] for stamps in streams), max(stamps[-1] for stamps in streams)
        count = sum(begin < stamp <= end for stamps in streams for stamp in stamps)
        return Decode(tokens_per_second=count / (end - begin), step_ms=1000 * len(prompts) * (end - begin) / count)

    def close(self) -> None:
        self._http.close()
        self._server.send_signal(signal.SIGTERM)
        self._server.wait(90)

    def _stamps(self, prompt: list[int], tokens: int) -> list[float]:
        """When each token of one streamed completion arrived."""
        body = {
            "model": "bench",
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        stamps: list[float] = []
        with self._http.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    count = len(json.loads(line.removeprefix("data: "))["choices"][0]["token_ids"] or ())
                    stamps += [time.perf_counter()] * count
        return stamps

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self._server.poll() is None:
            try:
                if self._http.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.25)
        self._server.kill()
        raise RuntimeError("the server did not become ready; run qwen36 serve by hand to see why")


def _flag(field: str, value: Any) -> tuple[str, str]:
    return f"--{field.replace('_', '-')}", value if isinstance(value, str) else json.dumps(value)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
