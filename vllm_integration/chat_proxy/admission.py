"""Admission control: requests in flight, their limit, and the drain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from .errors import ProxyError

_ABORT_GRACE = 5.0
"""Seconds for aborted requests to tell their clients, on top of the drain's own time."""


class Abortable(Protocol):
    """A request in flight."""

    def abort(self, error: ProxyError) -> None:
        """End now and tell the client why."""


class AdmissionControl:
    """Counts requests in flight, refuses those beyond the limit and, once draining, all.

    Args:
        limit: requests in flight at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.draining = False
        self._in_flight: set[Abortable] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._in_flight)

    @contextmanager
    def admit(self, request: Abortable) -> Iterator[None]:
        """Count `request` as in flight inside the block.

        Raises:
            ProxyError: 503 when draining, 429 when full.
        """
        if self.draining:
            raise ProxyError(503, "The server is shutting down.", reason="draining", retry_after=5)
        if len(self._in_flight) >= self.limit:
            raise ProxyError(
                429, f"{self.limit} requests are already in flight; try again later.", reason="busy", retry_after=1
            )
        self._in_flight.add(request)
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight.discard(request)
            if not self._in_flight:
                self._idle.set()

    async def drain(self, timeout: float) -> int:
        """Admit no more, wait up to `timeout` seconds for those in flight to end, then abort the rest.

        Returns:
            How many had to be aborted.
        """
        self.draining = True
        if await self._ended(timeout):
            return 0
        aborted = tuple(self._in_flight)
        for request in aborted:
            request.abort(ProxyError(503, "The server shut down before the answer was complete.", reason="draining"))
        await self._ended(_ABORT_GRACE)
        return len(aborted)

    async def _ended(self, timeout: float) -> bool:
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
