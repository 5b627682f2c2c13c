"""SIGTERM to the real process: refuse, let the running end, exit 0."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator

import httpx
import pytest

CHAT = "/v1/chat/completions"


class Process:
    """The proxy as a process of its own, before the fake engine, and a client of it."""

    def __init__(self, process: asyncio.subprocess.Process, client: httpx.AsyncClient) -> None:
        self.process, self.client = process, client

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def stream(self) -> contextlib.AbstractAsyncContextManager[httpx.Response]:
        return self.client.stream("POST", CHAT, json={"messages": []})

    async def status(self) -> int:
        async with asyncio.timeout(60):
            return await self.process.wait()

    async def health(self, status: str) -> httpx.Response:
        """The answer of /health once it says `status`."""
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    response = await self.client.get("/health")
                    if response.json()["status"] == status:
                        return response
                await asyncio.sleep(0.02)


@pytest.fixture
def launch(engine, fakes):
    """A context manager that runs the proxy with some flags more."""

    @contextlib.asynccontextmanager
    async def launched(*flags: str) -> AsyncIterator[Process]:
        port = fakes.free_port()
        async with (
            fakes.serving(engine.app) as backend,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
        ):
            command = ["-m", "vllm_integration.chat_proxy", "--backend", backend, "--port", str(port)]
            process = await asyncio.create_subprocess_exec(
                sys.executable, *command, "--health-interval", "0.05", *flags, stderr=asyncio.subprocess.DEVNULL
            )
            proxy = Process(process, client)
            try:
                await proxy.health("ready")
                yield proxy
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    return launched


def streaming(engine, finish: asyncio.Event):
    """An engine that sends one event, waits for `finish` and sends another."""

    async def answer(body, receive, send):
        await engine.start(send)
        await engine.piece(send, b"data: 1\n\n")
        await finish.wait()
        await engine.piece(send, b"data: 2\n\n", more=False)

    return answer


async def test_a_running_stream_ends_whole_and_the_next_request_is_refused(engine, launch):
    finish = asyncio.Event()
    engine.answer = streaming(engine, finish)
    async with launch() as proxy:
        async with proxy.stream() as response:
            pieces = response.aiter_raw()
            assert await anext(pieces) == b"data: 1\n\n"
            proxy.stop()
            assert (await proxy.health("draining")).status_code == 503
            refused = await proxy.client.post(CHAT, json={"messages": []})
            assert refused.status_code == 503
            assert "shutting down" in refused.json()["error"]["message"]
            assert proxy.process.returncode is None
            finish.set()
            assert b"".join([piece async for piece in pieces]) == b"data: 2\n\n"
        assert await proxy.status() == 0


async def test_a_stream_beyond_the_deadline_is_told_and_cut(engine, launch):
    engine.answer = streaming(engine, asyncio.Event())
    async with launch("--drain-timeout", "0.2") as proxy:
        async with proxy.stream() as response:
            pieces = response.aiter_raw()
            assert await anext(pieces) == b"data: 1\n\n"
            proxy.stop()
            rest = b"".join([piece async for piece in pieces])
        assert json.loads(rest.removeprefix(b"data: "))["error"]["code"] == 503
        assert await proxy.status() == 0


async def test_an_idle_proxy_stops_at_once(launch):
    async with launch() as proxy:
        proxy.stop()
        assert await proxy.status() == 0


async def test_a_second_signal_does_not_wait(engine, launch):
    engine.answer = streaming(engine, asyncio.Event())
    async with launch("--drain-timeout", "600") as proxy, proxy.stream() as response:
        pieces = response.aiter_raw()  # Held: dropped, it would close the connection, and nothing would be waited for.
        assert await anext(pieces) == b"data: 1\n\n"
        proxy.stop()
        await proxy.health("draining")
        proxy.stop()
        await proxy.status()
