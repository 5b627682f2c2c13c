"""A fake engine behind the real proxy, both on real sockets in the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_integration.chat_proxy import ProxySettings, create_app
from vllm_integration.chat_proxy.app import Proxy

Answer = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]
"""What the fake engine does with one completion: its body and the ASGI channels."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, port: int = 0) -> AsyncIterator[str]:
    """Serve `app` on a free port and give its base URL."""
    config = uvicorn.Config(app, port=port, log_level="critical", timeout_graceful_shutdown=1)
    server = _Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


CONTEXT = 100
"""Tokens that fit an engine that counts."""


def length(body: dict[str, Any]) -> int:
    """Of a prompt in tokens, a character each; of several, the longest."""
    if "messages" in body:
        return sum(len(message["content"]) for message in body["messages"])
    prompt = body.get("prompt", body.get("input"))
    if isinstance(prompt, list):
        return len(prompt) if isinstance(prompt[0], int) else max(map(len, prompt))
    return len(prompt)


class FakeEngine:
    """Answers like vLLM's server; a test replaces `answer` by what it needs.

    `completions` has the body bytes of every completion but the warm-up's, `warm_ups` counts those.
    """

    def __init__(self) -> None:
        self.answer: Answer = self.echo
        self.start, self.piece = start, piece
        self.completions: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.warm_ups = 0
        self.warm_up_status = 200
        self.healthy = True
        self.stalled = 0  # How many of the next probes are not answered in time.
        self.probes = 0
        self.metrics = '# HELP vllm:x_total X\n# TYPE vllm:x_total counter\nvllm:x_total{engine="0"} 3.0\n'
        self.app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/metrics", self._metrics),
                Route("/v1/chat/completions", _Endpoint(self), methods=["POST"]),
                Route("/v1/completions", _Endpoint(self), methods=["POST"]),
                *(
                    Route(path, _Endpoint(self), methods=["POST"])
                    for path in (
                        *("/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/tokenize"),
                        *(f"/v1/{of}/render" for of in ("chat/completions", "completions", "messages")),
                    )
                ),
                Route("/reset_prefix_cache", _Endpoint(self), methods=["POST"]),
            ]
        )

    async def _health(self, _: Request) -> Response:
        self.probes += 1
        if self.stalled:
            self.stalled -= 1
            await asyncio.sleep(1)
        return Response(status_code=200 if self.healthy else 503)

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "tiny", "object": "model", "max_model_len": 100}]})

    async def _metrics(self, _: Request) -> Response:
        return PlainTextResponse(self.metrics)

    def count(self) -> FakeEngine:
        """Count a token a character, and refuse what does not fit 100, as vLLM does."""
        self.answer = self._count
        return self

    async def _count(self, body: dict[str, Any], _: Receive, send: Send) -> None:
        bound = next((body[n] for n in ("max_completion_tokens", "max_output_tokens", "max_tokens") if body.get(n)), 0)
        size, status, result = length(body), 200, body
        if self.paths[-1] == "/tokenize":
            result = {"count": size, "max_model_len": CONTEXT}
        elif self.paths[-1] == "/v1/messages/count_tokens":
            result = {"input_tokens": size}
        elif size + bound > CONTEXT:
            message = f"This model's maximum context length is {CONTEXT} tokens."
            status, result = 400, {"error": {"message": message, "code": 400}}
        await start(send, status, b"application/json")
        await piece(send, json.dumps(result).encode(), more=False)

    async def echo(self, body: dict[str, Any], _: Receive, send: Send) -> None:
        await start(send, content_type=b"application/json")
        await piece(send, json.dumps(body).encode(), more=False)


class _Endpoint:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        raw = await request.body()
        body = json.loads(raw)
        if body.get("messages") == [{"role": "user", "content": "Hello"}]:
            self.engine.warm_ups += 1
            await Response("{}", self.engine.warm_up_status)(scope, receive, send)
            return
        self.engine.completions.append(raw)
        self.engine.paths.append(scope["path"])
        self.engine.headers.append(dict(request.headers))
        await self.engine.answer(body, receive, send)


async def start(send: Send, status: int = 200, content_type: bytes = b"text/event-stream; charset=utf-8") -> None:
    headers = [(b"content-type", content_type), (b"x-request-id", b"r1")]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def piece(send: Send, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def until(condition: Callable[[], bool]) -> None:
    """Wait for `condition` to hold; a test that waits in vain fails within a minute."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


class Stack:
    """A proxy before a fake engine, and a client."""

    def __init__(self, engine: FakeEngine, proxy: Proxy, client: httpx.AsyncClient) -> None:
        self.engine, self.proxy, self.client = engine, proxy, client
        self.until = until

    async def chat(self, **body: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json={"messages": [], **body})

    def stream(self, **body: Any) -> contextlib.AbstractAsyncContextManager[httpx.Response]:
        return self.client.stream("POST", "/v1/chat/completions", json={"messages": [], "stream": True, **body})

    def counted(self, name: str, **labels: str) -> float:
        return self.proxy.metrics._registry.get_sample_value(name, labels) or 0.0


@contextlib.asynccontextmanager
async def stack(engine: FakeEngine, backend: str, *, ready: bool = True, **settings: Any) -> AsyncIterator[Stack]:
    options: dict[str, Any] = {"health_interval": 0.02, **settings}
    app = create_app(ProxySettings(backend=backend, **options))
    key = options.get("api_key")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with (
        serving(app) as url,
        httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False) as client,
    ):
        made = Stack(engine, app.state.proxy, client)
        if ready:
            await until(lambda: made.proxy.backend.state.value == "ready")
        yield made


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def fakes() -> SimpleNamespace:
    """For tests that start and stop servers themselves."""
    return SimpleNamespace(free_port=free_port, serving=serving, stack=stack)


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def make(engine: FakeEngine) -> AsyncIterator[Callable[..., Awaitable[Stack]]]:
    """Builds a stack with the settings given; everything is stopped at the end of the test."""
    async with contextlib.AsyncExitStack() as exits:

        async def build(**settings: Any) -> Stack:
            backend = await exits.enter_async_context(serving(engine.app))
            return await exits.enter_async_context(stack(engine, backend, **settings))

        yield build
