"""The proxy as an ASGI application: its routes and what each does to a request."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from . import metrics
from .admission import AdmissionControl
from .answers import ChatAnswer
from .backend import Backend, State
from .body import parse_object, read_body
from .envelope import Envelope
from .errors import ProxyError
from .exchange import Again, Exchange, end_to_end
from .limits import FIELDS, is_too_long, refit
from .request_defaults import RequestDefaults
from .settings import ProxySettings

Fill = Callable[[dict[str, Any]], None]
"""Fills in what a request left open, changing top-level fields only."""


_CORS: dict[str, Any] = {
    "allow_methods": ["GET", "POST"],
    "allow_headers": ["*"],
    "expose_headers": ["retry-after", "x-request-id"],
}
"""What a page of an allowed origin may do and see."""


_RENDER = "/render"
"""Ends the routes that answer with the tokens and the sampling parameters that a request would run."""


class Proxy:
    """The parts of one proxy.

    Args:
        settings: what it was told at start.
    """

    def __init__(self, settings: ProxySettings) -> None:
        self.settings = settings
        self.backend = Backend(settings)
        self.envelope = Envelope(settings.max_prompt_tokens, settings.max_completion_tokens)
        elsewhere = settings.long_context_backend
        self.long_context = Backend(replace(settings, backend=elsewhere)) if elsewhere else None
        self.admission = AdmissionControl(settings.max_concurrent)
        self.metrics = metrics.ProxyMetrics(
            in_flight=lambda: len(self.admission), ready=lambda: self.backend.state is State.READY
        )
        self._key = _digest(settings.api_key) if settings.api_key else None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the backend while the application runs."""
        backends = [backend for backend in (self.backend, self.long_context) if backend is not None]
        watches = [asyncio.create_task(backend.watch()) for backend in backends]
        try:
            yield
        finally:
            for watch, backend in zip(watches, backends, strict=True):
                watch.cancel()
                await backend.client.aclose()

    async def choose(self, route: str, body: dict[str, Any], headers: list[tuple[bytes, bytes]]) -> Backend:
        """Who answers a request.

        Raises:
            ProxyError: 400 where it goes beyond what was accepted and there is nobody else, 503 where that one is not
                ready.
        """
        refusal = await self.envelope.beyond(route, body, self.backend, headers)
        if refusal is None:
            return self.backend
        if self.long_context is None:
            raise refusal
        self.long_context.require_warm()
        self.metrics.routed.labels(route).inc()
        return self.long_context

    def authorize(self, headers: Headers) -> None:
        """Raises ProxyError 401 unless the client presents the key."""
        if self._key is None:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if not scheme:
            scheme, token = "bearer", headers.get("x-api-key", "")  # Where Anthropic's clients put it.
        if scheme.lower() != "bearer" or not secrets.compare_digest(_digest(token), self._key):
            raise ProxyError(401, "The API key is missing or wrong.", reason="unauthorized")

    async def health(self, _: Request) -> Response:
        """200 when a request would be served, otherwise 503 and why."""
        state = await self.backend.confirm()
        status = "draining" if self.admission.draining else state.value
        return JSONResponse({"status": status}, status_code=200 if status == State.READY.value else 503)

    async def show_metrics(self, _: Request) -> Response:
        """The proxy's and the backend's metrics, in the text exposition format."""
        try:
            answer = await self.backend.client.get("/metrics", headers={"accept": "text/plain"}, timeout=5.0)
            text = answer.text if answer.status_code == 200 else ""
        except httpx.TransportError:
            text = ""
        return Response(self.metrics.render(text), headers={"content-type": metrics.CONTENT_TYPE})


class Forward:
    """One forwarded route, as an ASGI application.

    Args:
        proxy: the parts it uses.
        method: "GET", or "POST" with a JSON object.
        path: of the route, the same at the backend.
        fill: what is filled into the JSON object.
        answer: what is changed in the answer.
    """

    def __init__(
        self, proxy: Proxy, method: str, path: str, fill: Fill | None = None, answer: type[ChatAnswer] | None = None
    ) -> None:
        self.proxy, self.method, self.path, self.fill, self.answer = proxy, method, path, fill, answer
        self.request = path.removesuffix(_RENDER)
        """The route of the request; the path itself, unless it is only rendered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self.answer() if self.answer else None
        exchange = Exchange(self.path, self.proxy.backend, self.proxy.metrics, receive, send, answer)
        await exchange.run(self._serve(exchange, scope, receive))

    async def _serve(self, exchange: Exchange, scope: Scope, receive: Receive) -> None:
        proxy = self.proxy
        headers = Headers(scope=scope)
        proxy.authorize(headers)
        with proxy.admission.admit(exchange):
            proxy.backend.require_warm()
            sent = end_to_end(scope["headers"])
            if "authorization" not in headers and "x-api-key" in headers:
                sent.append((b"authorization", b"Bearer " + headers["x-api-key"].encode("latin-1")))
            body, content = await self._body(headers, receive) if self.method == "POST" else ({}, None)
            open_ended = content
            if self.path in FIELDS:
                exchange.backend = await proxy.choose(self.path, body, sent)
                if exchange.backend is proxy.backend and proxy.envelope.fill(self.path, body):
                    content = json.dumps(body).encode()

            def request(content: bytes | None) -> httpx.Request:
                url = httpx.URL(self.path, query=scope["query_string"] or None)
                return exchange.backend.client.build_request(self.method, url, headers=sent, content=content)

            async def again(status: int, answer: bytes) -> httpx.Request | None:
                if not is_too_long(status, answer):
                    return None
                if content is not open_ended:  # what is left of the context is less than what was filled in
                    return request(open_ended)
                cut = proxy.settings.cut_max_tokens
                better = await refit(self.request, body, exchange.backend, sent, cut=cut)
                return None if better is None else request(json.dumps(better).encode())

            retry: Again | None = again if self.request in FIELDS else None
            await exchange.forward(request(content), retry)

    async def _body(self, headers: Headers, receive: Receive) -> tuple[dict[str, Any], bytes]:
        """The request's body, and its text: as the client wrote it unless something had to be filled in."""
        limits = self.proxy.settings
        declared = headers.get("content-length", "")
        raw = await read_body(
            receive, int(declared) if declared.isdigit() else None, limits.max_body_bytes, limits.body_timeout
        )
        self.proxy.metrics.bytes_in.labels(self.path).inc(len(raw))
        body = parse_object(raw, limits.max_json_depth)
        if self.fill is None:
            return body, raw
        written = dict(body)
        self.fill(body)
        return body, raw if body == written else json.dumps(body).encode()


def create_app(settings: ProxySettings) -> Starlette:
    """The proxy's application. `app.state.proxy` is its Proxy.

    Only what clients need is forwarded: the engine's administrative routes stay behind the proxy.
    """
    proxy = Proxy(settings)
    fills, origins = RequestDefaults(settings), settings.cors_origins
    rendered = {"/v1/chat/completions": fills.chat, "/v1/completions": None, "/v1/messages": fills.messages}
    forwards = (
        Forward(proxy, "POST", "/v1/chat/completions", fills.chat, ChatAnswer),
        Forward(proxy, "POST", "/v1/completions"),
        *(Forward(proxy, "POST", route + _RENDER, fill) for route, fill in rendered.items()),
        Forward(proxy, "POST", "/v1/responses", fills.responses),
        Forward(proxy, "POST", "/v1/messages", fills.messages),
        Forward(proxy, "POST", "/v1/messages/count_tokens", fills.count_tokens),
        Forward(proxy, "GET", "/v1/models"),
        Forward(proxy, "POST", "/tokenize", fills.tokenize),
        Forward(proxy, "POST", "/detokenize"),
        Forward(proxy, "GET", "/version"),
    )
    app = Starlette(
        routes=[
            Route("/health", proxy.health),
            Route("/metrics", proxy.show_metrics),
            *(Route(forward.path, forward, methods=[forward.method]) for forward in forwards),
        ],
        middleware=[Middleware(CORSMiddleware, allow_origins=origins, **_CORS)] if origins else [],
        exception_handlers={HTTPException: _http_error, Exception: _internal_error},
        lifespan=lambda _: proxy.running(),
    )
    app.state.proxy = proxy
    return app


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}."
    return Response(
        ProxyError(error.status_code, message, reason="route").body_for(request.url.path),
        error.status_code,
        headers={"content-type": "application/json", **(error.headers or {})},
    )


async def _internal_error(request: Request, error: Exception) -> Response:
    return Response(
        ProxyError(500, "The proxy failed; its log says how.", reason="internal").body_for(request.url.path),
        500,
        headers={"content-type": "application/json"},
    )
