"""Running the application: signals, the drain, the exit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Generator

import uvicorn
from starlette.applications import Starlette

from .app import Proxy, create_app
from .settings import ProxySettings

log = logging.getLogger("chat_proxy")

_KEEP_ALIVE = 75
"""Seconds that an idle client connection is kept; longer than most clients keep theirs, so that they close first."""


class DrainingServer(uvicorn.Server):
    """Ends in two steps: first refuses new requests while the running ones end, then stops.

    A second signal stops at once.
    """

    def __init__(self, app: Starlette, settings: ProxySettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                log_level="info",
                access_log=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=1,
            )
        )
        self._proxy: Proxy = app.state.proxy
        self._drain_timeout = settings.drain_timeout
        self._draining: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Take over uvicorn's handlers, which would end the process by the signal instead of with status 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Begin to drain; the second time, stop at once."""
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())
        else:
            self.should_exit = self.force_exit = True

    async def _drain(self) -> None:
        log.info("draining: %d requests in flight, %g s at most", len(self._proxy.admission), self._drain_timeout)
        cut = await self._proxy.admission.drain(self._drain_timeout)
        log.info("drained, %d requests cut", cut)
        self.should_exit = True


def serve(settings: ProxySettings) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return."""
    DrainingServer(create_app(settings), settings).run()
