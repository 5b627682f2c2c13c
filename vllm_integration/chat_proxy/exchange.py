"""One request on its way: client, proxy, backend and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable

import httpx
from starlette.types import Receive, Send

from .answers import ChatAnswer
from .backend import Backend, broken
from .body import ClientGone
from .errors import ProxyError
from .metrics import ProxyMetrics

Headers = Iterable[tuple[bytes, bytes]]

CLIENT_GONE = 499
"""The status under which a request is counted whose client left before the answer was complete."""

_NOT_FORWARDED = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade host content-length expect date server origin".split()
)
"""Headers that belong to one connection (RFC 9110, 7.6.1), or that each side writes anew. The origin is the proxy's to
judge: a backend that sees one adds its own answer to it."""

Again = Callable[[int, bytes], Awaitable[httpx.Request | None]]
"""From a refusal's status and body, the request to send instead, or None to pass the refusal on."""


def end_to_end(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers that go through a proxy."""
    kept = [(name.lower(), value) for name, value in headers]
    # What a `Connection` header lists is for this connection too.
    listed = {token.strip().lower() for name, value in kept if name == b"connection" for token in value.split(b",")}
    return [(name, value) for name, value in kept if name not in _NOT_FORWARDED and name not in listed]


class Exchange:
    """Carries one request to the backend and its answer back, as it arrives.

    Args:
        route: label of the metrics.
        backend: where the request goes.
        metrics: where it is counted.
        receive, send: the ASGI channels of the client.
        answer: what is changed in the answer; None for byte for byte.
    """

    def __init__(
        self,
        route: str,
        backend: Backend,
        metrics: ProxyMetrics,
        receive: Receive,
        send: Send,
        answer: ChatAnswer | None = None,
    ) -> None:
        self.route, self.backend, self.metrics, self.answer = route, backend, metrics, answer
        self._receive, self._send = receive, send
        self._arrived = time.monotonic()
        self._status: int | None = None
        self._complete = False
        self._streams = False
        self._tail = b"\n\n"
        """The last bytes sent of a stream: two line ends when the next byte begins an event."""
        self._work: asyncio.Task[None] | None = None
        self._cut: Exception | None = None

    async def run(self, work: Coroutine[None, None, None]) -> None:
        """Do `work`, answer the client if it fails, and count the exchange."""
        self._work = asyncio.ensure_future(work)
        try:
            try:
                await self._work
            except asyncio.CancelledError:
                if self._cut is None:
                    raise
                raise self._cut from None
        except ClientGone:
            self._status = CLIENT_GONE
        except ProxyError as error:
            await self.refuse(error)
        finally:
            self.metrics.requests.labels(self.route, str(self._status or CLIENT_GONE)).inc()
            self.metrics.duration.labels(self.route).observe(time.monotonic() - self._arrived)

    async def forward(self, request: httpx.Request, again: Again | None = None) -> None:
        """Send `request` to the backend and its answer to the client; the body must have been received.

        Where the backend refuses it and `again` knows a better one, that one is sent, once.

        Cancelled as soon as the client leaves, which closes the connection to the backend and so aborts the request in
        the engine.

        Raises:
            ProxyError: the backend failed.
        """
        watcher = asyncio.ensure_future(self._watch_client())
        try:
            better = await self._exchange(request, again)
            if better is not None:
                await self._exchange(better, None)
        finally:
            watcher.cancel()

    async def refuse(self, error: ProxyError) -> None:
        """Tell the client of `error`, in whatever form is still open to it."""
        self.metrics.rejected.labels(error.reason).inc()
        if self._status is None:
            headers = [(name.encode(), value.encode()) for name, value in error.headers.items()]
            await self._answer(
                error.status, [(b"content-type", b"application/json"), *headers], error.body_for(self.route)
            )
        elif self._streams and self._tail.endswith((b"\n\n", b"\r\n\r\n")):
            await self._body(error.event_for(self.route))
            await self._end()
        # Otherwise something is half sent, and nothing can be added that a client would read as intended. An answer
        # left unfinished makes the server drop the connection, which every client sees for the failure that it is.

    def abort(self, error: ProxyError) -> None:
        """End now and tell the client why."""
        self._interrupt(error)

    async def _exchange(self, request: httpx.Request, again: Again | None) -> httpx.Request | None:
        response = await self.backend.send(request)
        try:
            return await self._relay(response, again)
        except httpx.TransportError as error:
            raise broken(error, self.backend.settings.response_timeout) from None
        finally:
            await response.aclose()

    async def _relay(self, response: httpx.Response, again: Again | None) -> httpx.Request | None:
        """Answer the client with `response`, or give the request to send instead."""
        headers = end_to_end(response.headers.raw)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            # A whole answer is read before its status goes out, so that a broken one can still become a 502.
            body = b"".join([piece async for piece in response.aiter_raw()])
            self.backend.heard()
            better = await again(response.status_code, body) if again is not None else None
            if better is None:
                if self.answer is not None:
                    body = self.answer.whole(body)
                await self._answer(response.status_code, headers, body)
            return better
        self._streams = True
        await self._start(response.status_code, headers)
        first = True
        async for piece in response.aiter_raw():
            self.backend.heard()
            if self.answer is not None:
                piece = self.answer.feed(piece)
            if not piece:
                continue
            await self._body(piece)
            if first:
                self.metrics.ttft.labels(self.route).observe(time.monotonic() - self._arrived)
                first = False
        if self.answer is not None and (rest := self.answer.finish()):
            await self._body(rest)
        await self._end()
        return None

    async def _answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        await self._start(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self._body(body)
        await self._end()

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _body(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        self._tail = (self._tail + piece)[-4:]
        self.metrics.bytes_out.labels(self.route).inc(len(piece))

    async def _end(self) -> None:
        # Set first: a server tells `receive` of a disconnect once the answer is complete, too.
        self._complete = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._complete:
            self._interrupt(ClientGone())

    def _interrupt(self, cause: Exception) -> None:
        self._cut = cause
        if self._work is not None:
            self._work.cancel()
