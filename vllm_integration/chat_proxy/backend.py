"""The engine's server as seen from the proxy: is it up, and has it answered a warm-up request."""

from __future__ import annotations

import asyncio
import logging
from enum import Enum

import httpx

from .errors import ProxyError
from .settings import ProxySettings

log = logging.getLogger("chat_proxy")

_PROBE_TIMEOUT = 5.0
"""Seconds for the backend to answer GET /health. It does so from its event loop, not from the engine's step."""


class State(Enum):
    """What the proxy knows of the backend."""

    STARTING = "starting"
    """Not answered yet."""
    WARMING = "warming up"
    """Answers, but no completion has gone through."""
    READY = "ready"
    DOWN = "backend down"
    """Was ready, and stopped answering."""


class Backend:
    """Connections to the backend and what is known of its health.

    Args:
        settings: where it is and how long to wait.
    """

    def __init__(self, settings: ProxySettings) -> None:
        self.settings = settings
        self.state = State.STARTING
        timeout = httpx.Timeout(settings.response_timeout, connect=settings.connect_timeout)
        self.client = httpx.AsyncClient(
            base_url=settings.backend,
            timeout=timeout,
            # The gate bounds the requests in flight; a second bound here would only make them wait unseen. A connection
            # is not reused, since one that the backend has just closed for idleness fails a request that is innocent.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            headers={"accept-encoding": "identity"},
            trust_env=False,
        )

    async def watch(self) -> None:
        """Follow the backend's health for ever: warm it up each time it comes up."""
        while True:
            await self.look()
            await asyncio.sleep(self.settings.health_interval)

    async def look(self) -> State:
        """Look at the backend once and act on what is seen."""
        if not await self._answers():
            if self.state is State.READY:
                log.error("the backend at %s does not answer any more", self.settings.backend)
            self.state = State.DOWN if self.state in (State.READY, State.DOWN) else State.STARTING
        elif self.state is not State.READY:
            self.state = State.WARMING
            if await self._warm_up():
                self.state = State.READY
                log.info("the backend at %s is warm, ready for requests", self.settings.backend)
        return self.state

    async def confirm(self) -> State:
        """The state now: READY is confirmed by asking the backend, so that a death shows at once."""
        if self.state is State.READY and not await self._answers():
            self.state = State.DOWN
        return self.state

    def require_warm(self) -> None:
        """Raises ProxyError 503 until the first warm-up went through.

        A backend that died later is not refused here: it may be back, and the attempt tells.
        """
        if self.state in (State.STARTING, State.WARMING):
            raise ProxyError(503, f"The server is {self.state.value}.", reason="not_ready", retry_after=5)

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send `request` and return the response with its body unread.

        Raises:
            ProxyError: 503 when the backend cannot be reached, 504 when it is too slow, 502 when it breaks off.
        """
        try:
            return await self.client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise ProxyError(
                503, "The inference backend cannot be reached.", reason="backend_down", retry_after=5
            ) from None
        except httpx.TransportError as error:
            raise broken(error, self.settings.response_timeout) from None

    async def _answers(self) -> bool:
        try:
            return (await self.client.get("/health", timeout=_PROBE_TIMEOUT)).status_code == 200
        except httpx.TransportError:
            return False

    async def _warm_up(self) -> bool:
        """Run one short chat completion through the engine."""
        key = self.settings.api_key
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            models = await self.client.get("/v1/models", headers=headers)
            models.raise_for_status()
            question = {
                "model": models.json()["data"][0]["id"],
                "messages": [{"role": "user", "content": "Hello"}],
                "max_tokens": 4,
                "temperature": 0,
            }
            answer = await self.client.post("/v1/chat/completions", json=question, headers=headers)
            answer.raise_for_status()
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            log.warning("the warm-up request failed and will be tried again: %s", error or type(error).__name__)
            return False
        return True


def broken(error: httpx.TransportError, timeout: float) -> ProxyError:
    """The answer to give when the backend broke off or fell silent."""
    if isinstance(error, httpx.TimeoutException):
        return ProxyError(
            504, f"The inference backend sent nothing for {timeout:g} s.", reason="backend_timeout", retry_after=5
        )
    return ProxyError(502, "The inference backend broke off the connection.", reason="backend_broken", retry_after=5)
