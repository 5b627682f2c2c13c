"""The engine's server as seen from the proxy: is it up, and has it answered a warm-up request."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from enum import Enum

import httpx

from .errors import ProxyError
from .settings import ProxySettings

log = logging.getLogger("chat_proxy")

_PROBE_TIMEOUT = 5.0
"""Seconds for the backend to answer GET /health. It does so from its event loop, not from the engine's step."""

_CONFIRM_TIMEOUT = 1.0
"""The same, when somebody waits for the answer: a load balancer gives up on its own probe after a few seconds."""


class State(Enum):
    """What the proxy knows of the backend. Requests are refused by STARTING and by the first WARMING alone."""

    STARTING = "starting"
    """Not answered yet."""
    WARMING = "warming up"
    """Answers, but no completion has gone through it since it started."""
    READY = "ready"
    SILENT = "backend does not answer"
    """Was ready, and missed several probes in a row: too busy to answer, stuck, or cut off."""
    DOWN = "backend down"
    """Was ready; now nobody listens, or it says itself that it is unwell."""


class _Probe(Enum):
    """What one look at the backend showed."""

    WELL = "answers"
    SILENT = "no answer in time"
    UNWELL = "answers that it is unwell"
    GONE = "refuses connections"
    """Nobody listens at its port. A busy server does not look like this, so whoever answers next was started anew."""


class Backend:
    """Connections to the backend and what is known of its health.

    Its health decides what /health says. It refuses requests only until the first completion went through: later, a
    probe that fails may be no more than a busy moment, and the attempt tells at once if the backend is really gone.

    Args:
        settings: where it is and how long to wait.
    """

    def __init__(self, settings: ProxySettings) -> None:
        self.settings = settings
        self.state = State.STARTING
        self._served = False
        self._misses = 0
        self._gone = False
        self._heard = -math.inf
        timeout = httpx.Timeout(settings.response_timeout, connect=settings.connect_timeout)
        self.client = httpx.AsyncClient(
            base_url=settings.backend,
            timeout=timeout,
            # Admission control bounds the requests in flight; a second bound here would only make them wait unseen.
            # A connection is not reused: one that the backend has just closed for idleness fails an innocent request.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            headers={"accept-encoding": "identity"},
            trust_env=False,
        )

    async def watch(self) -> None:
        """Follow the backend's health for ever: warm it up each time that it was started."""
        while True:
            try:
                await self.look()
            except Exception:
                # Whatever went wrong, a proxy that no longer looks would tell its load balancer old news for ever.
                log.exception("looking at the backend failed")
            await asyncio.sleep(self.settings.health_interval)

    async def look(self) -> State:
        """Look at the backend once and act on what is seen."""
        began = time.monotonic()
        self._judge(await self._probe(_PROBE_TIMEOUT), began)
        if self.state is State.WARMING and await self._warm_up():
            self._enter(State.READY)
        return self.state

    async def confirm(self) -> State:
        """The state now. A backend that is gone shows at once; a probe that only takes long is left to the watch."""
        if self.state in (State.READY, State.SILENT):
            seen = await self._probe(_CONFIRM_TIMEOUT)
            if seen is not _Probe.SILENT:
                self._judge(seen, time.monotonic())
        return self.state

    def heard(self) -> None:
        """Bytes of an answer came in, which shows as well as a probe that the backend is alive."""
        self._heard = time.monotonic()

    def require_warm(self) -> None:
        """Raises ProxyError 503 until the first completion went through.

        A backend that fell silent or died later is not refused here: it may be back, and the attempt tells.
        """
        if not self._served:
            raise ProxyError(503, f"The server is {self.state.value}.", reason="not_ready", retry_after=5)

    def _judge(self, seen: _Probe, began: float) -> None:
        """Draw the consequence of a probe that was sent at `began`, in monotonic seconds."""
        if seen is _Probe.SILENT and self._heard >= began:
            seen = _Probe.WELL
        self._misses = self._misses + 1 if seen is _Probe.SILENT else 0
        if seen is _Probe.GONE:
            self._gone = True
        if not self._served:
            self._enter(State.WARMING if seen is _Probe.WELL else State.STARTING)
        elif seen is _Probe.WELL:
            # Only one that was started anew has to be warmed up; one that was busy has served before.
            self._enter(State.WARMING if self._gone else State.READY)
        elif seen in (_Probe.GONE, _Probe.UNWELL):
            self._enter(State.DOWN)
        elif self.state is State.READY and self._misses >= self.settings.health_misses:
            self._enter(State.SILENT)

    def _enter(self, state: State) -> None:
        if state is self.state:
            return
        if state is State.READY:
            self._served, self._gone = True, False
            log.info("the backend at %s is ready for requests", self.settings.backend)
        elif self.state is State.READY:
            log.error("the backend at %s: %s", self.settings.backend, state.value)
        self.state = state

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

    async def _probe(self, timeout: float) -> _Probe:
        try:
            answer = await self.client.get("/health", timeout=timeout)
        except httpx.TransportError as error:
            return _Probe.GONE if _refused(error) else _Probe.SILENT
        return _Probe.WELL if answer.status_code == 200 else _Probe.UNWELL

    async def _warm_up(self) -> bool:
        """See one completion through the engine: somebody else's, or a short one of our own.

        Behind the queue of a backend that other proxies serve too, our own could take as long as the queue.
        """
        if await self._has_generated():
            return True
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

    async def _has_generated(self) -> bool:
        """Whether the backend has generated a token since it started, by its own metrics."""
        try:
            answer = await self.client.get("/metrics", headers={"accept": "text/plain"}, timeout=_PROBE_TIMEOUT)
        except httpx.TransportError:
            return False
        counts = re.findall(r"^vllm:generation_tokens_total(?:\{.*\})? (\S+)$", answer.text, re.MULTILINE)
        return any(float(count) > 0 for count in counts)


def _refused(error: BaseException | None) -> bool:
    """Whether a connection was refused, as the causes of `error` have it."""
    while error is not None:
        if isinstance(error, ConnectionRefusedError):
            return True
        if isinstance(error, BaseExceptionGroup):
            return all(_refused(member) for member in error.exceptions)
        error = error.__cause__ or error.__context__
    return False


def broken(error: httpx.TransportError, timeout: float) -> ProxyError:
    """The answer to give when the backend broke off or fell silent."""
    if isinstance(error, httpx.TimeoutException):
        return ProxyError(
            504, f"The inference backend sent nothing for {timeout:g} s.", reason="backend_timeout", retry_after=5
        )
    return ProxyError(502, "The inference backend broke off the connection.", reason="backend_broken", retry_after=5)
