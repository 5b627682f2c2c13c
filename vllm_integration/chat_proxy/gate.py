"""Who may come in: requests in flight, their limit, and the closing of the door."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from .errors import ProxyError

_ABORT_GRACE = 5.0
"""Seconds for cut requests to tell their clients, on top of the drain's own time."""


class Guest(Protocol):
    """A request in flight."""

    def abort(self, error: ProxyError) -> None:
        """End now and tell the client why."""


class Gate:
    """Counts requests in flight, refuses those beyond the limit and, once closed, all.

    Args:
        limit: requests in flight at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.closed = False
        self._inside: set[Guest] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._inside)

    @contextmanager
    def admit(self, guest: Guest) -> Iterator[None]:
        """Hold a place for `guest`.

        Raises:
            ProxyError: 503 when closed, 429 when full.
        """
        if self.closed:
            raise ProxyError(503, "The server is shutting down.", reason="draining", retry_after=5)
        if len(self._inside) >= self.limit:
            raise ProxyError(
                429, f"{self.limit} requests are already in flight; try again later.", reason="busy", retry_after=1
            )
        self._inside.add(guest)
        self._empty.clear()
        try:
            yield
        finally:
            self._inside.discard(guest)
            if not self._inside:
                self._empty.set()

    async def drain(self, timeout: float) -> int:
        """Close, wait up to `timeout` seconds for everybody to leave, then cut the rest.

        Returns:
            How many had to be cut.
        """
        self.closed = True
        if await self._left(timeout):
            return 0
        cut = tuple(self._inside)
        for guest in cut:
            guest.abort(ProxyError(503, "The server shut down before the answer was complete.", reason="draining"))
        await self._left(_ABORT_GRACE)
        return len(cut)

    async def _left(self, timeout: float) -> bool:
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True
