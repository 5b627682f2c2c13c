"""A real server: the start script, vLLM, the plugin and the proxy, on the tiny checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

SCRIPT = Path(__file__).parents[3] / "scripts" / "start_vllm_server.sh"
MODEL = "tiny"
MAX_MODEL_LEN = 2048
MAX_NUM_SEQS = 8
START_TIMEOUT = 240


def free_ports() -> tuple[int, int]:
    """Two TCP ports that were free a moment ago."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return int(first.getsockname()[1]), int(second.getsockname()[1])


def two_free_ports() -> int:
    """A port that was free a moment ago, as was the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError, OverflowError):
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            second.bind(("127.0.0.1", port + 1))
            return port


class Server:
    """The start script and everything it started."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, backend: str, log: Path) -> None:
        self.process, self.url, self.backend, self.log = process, url, backend, log
        self.events: int | None = None
        """Port of the KV events, if they are published."""
        self.http = httpx.Client(base_url=url, timeout=120, trust_env=False)
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(httpx.TransportError):
                if self.http.get("/health").status_code == 200:
                    return
            time.sleep(0.2)
        raise AssertionError(f"the server did not become ready:\n{self.log.read_text()[-4000:]}")

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def status(self, timeout: float = 90) -> int:
        return self.process.wait(timeout)

    def complete(self, prompt: Any, **options: Any) -> Any:
        """One completion, greedy unless told otherwise, with its token ids."""
        named = {"temperature": 0, "max_tokens": 16, **options}
        extra = {"return_token_ids": True, "ignore_eos": True, **named.pop("extra", {})}
        return self.client.completions.create(model=MODEL, prompt=prompt, extra_body=extra, **named)

    def tokens(self, prompt: Any, **options: Any) -> list[int]:
        """The token ids of one completion."""
        return list(self.complete(prompt, **options).choices[0].token_ids)

    def chat(self, text: str = "Say something.", **options: Any) -> Any:
        named = {"max_tokens": 32, **options}
        return self.client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": text}], **named)

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, added over its labels."""
        total: dict[str, float] = {}
        for family in text_string_to_metric_families(self.http.get("/metrics").text):
            for sample in family.samples:
                total[sample.name] = total.get(sample.name, 0.0) + sample.value
        return total

    def wait_idle(self) -> dict[str, float]:
        """Wait until nothing is held by any sequence; a leak fails here. Gives the metrics then."""
        held = (
            "qwen36:lanes_in_use",
            "qwen36:kv_blocks_in_use",
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "qwen36_proxy_requests_in_flight",
        )
        deadline = time.monotonic() + 30
        while True:
            now = self.metrics()
            left = {name: now[name] for name in held if now[name]}
            if not left:
                return now
            assert time.monotonic() < deadline, f"still held: {left}"
            time.sleep(0.1)


@contextlib.contextmanager
def running(checkpoint: Path, log: Path, *flags: str) -> Iterator[Server]:
    """Start a server and wait until it is ready; whatever is left of it at the end is killed."""
    port, backend_port = free_ports()
    command = [
        *(SCRIPT, "--model", checkpoint, "--served-model-name", MODEL),
        *("--port", port, "--backend-port", backend_port),
        *("--max-model-len", MAX_MODEL_LEN, "--max-num-seqs", MAX_NUM_SEQS, "--max-num-batched-tokens", 256),
        *("--kv-cache-memory-bytes", "100M", "--slots", 16, *flags),
    ]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, "PYTHON": sys.executable},
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{backend_port}", log)
    try:
        server.wait_ready()
        yield server
    finally:
        family = server.descendants() if process.poll() is None else []
        for member in [process, *family]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                member.kill()
        process.wait()
        server.http.close()
        server.client.close()


@pytest.fixture(scope="session")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that the tests share. They leave it idle, and it ends well."""
    events = two_free_ports()
    with running(tiny_checkpoint, tmp_path_factory.mktemp("server") / "log", "--kv-events", str(events)) as made:
        made.events = events
        yield made
        made.wait_idle()
        made.terminate()
        assert made.status() == 0, made.log.read_text()[-4000:]


@pytest.fixture(scope="module")
def by_priority(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for prompts of up to 24K tokens that schedules by priority."""
    sizes = ("--max-model-len", "24576", "--max-num-batched-tokens", "2048", "--slots", "32")
    memory = ("--kv-cache-memory-bytes", "400M")
    log = tmp_path_factory.mktemp("by-priority") / "log"
    with running(tiny_checkpoint, log, *sizes, *memory, "--", "--scheduling-policy", "priority") as made:
        yield made
        made.wait_idle()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the trained demo checkpoint, whose answers mean something."""
    checkpoint = Path(__file__).parents[3] / "assets" / "demo-checkpoint"
    with running(checkpoint, tmp_path_factory.mktemp("demo") / "log") as made:
        yield made


@pytest.fixture
def own_server(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that the test may break. On a busy machine, too, its drain outlasts a stream of some hundred tokens."""
    with running(tiny_checkpoint, tmp_path / "log", "--drain-timeout", "150") as made:
        yield made


@pytest.fixture(scope="session")
def reference(tiny_checkpoint: Path) -> Any:
    """The same checkpoint in Hugging Face transformers, fp32."""
    import torch
    from transformers import Qwen3_5ForConditionalGeneration

    torch.set_num_threads(1)
    return Qwen3_5ForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def generate(reference: Any) -> Callable[..., list[int]]:
    """`generate(prompt, count, **options)`: the greedy tokens that transformers gives."""
    import torch

    def run(prompt: list[int], count: int, **options: Any) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            full = reference.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=None,
                **options,
            )
        return list(full[0, len(prompt) :].tolist())

    return run
