"""Calls that may never come back, made from a thread of their own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..step import DeviceError

T = TypeVar("T")


class DeviceThread:
    """Runs calls one after the other and gives up waiting for one that takes too long.

    A device that hangs cannot be interrupted: the thread stays behind, a daemon that does not keep the process alive,
    and every later call is refused.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._failed: str | None = None
        self._moved = 0.0
        threading.Thread(target=self._serve, name="neuron-device", daemon=True).start()

    def call(self, function: Callable[..., T], *args: Any, timeout: float, what: str) -> T:
        """The result of `function(*args)`.

        Args:
            timeout: seconds to wait, from the start or from the last `moved`.
            what: what is being done, for messages.
        Raises:
            DeviceError: it failed, took longer than `timeout`, or an earlier call did.
        """
        if self._failed is not None:
            raise DeviceError(f"{what}: the device is out of use since an earlier failure ({self._failed})")
        outcome: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

        def work() -> None:
            try:
                outcome.put((function(*args), None))
            except BaseException as error:
                outcome.put((None, error))

        self.moved()
        self._calls.put(work)
        found = None
        while found is None:
            try:
                found = outcome.get(timeout=max(0.0, self._moved + timeout - time.monotonic()))
            except queue.Empty:
                if time.monotonic() < self._moved + timeout:
                    continue
                self._failed = f"{what} did not end in {timeout:g} s"
                problem = f"{self._failed}: the device hangs; see neuron-top and restart the server"
                raise DeviceError(problem) from None
        result, error = found
        if error is not None:
            self._failed = f"{what}: {error}"
            raise DeviceError(f"{what} failed on the device: {error}") from error
        return result  # type: ignore[return-value]

    def moved(self) -> None:
        """Say, from within a call of many runs of the device, that one of them ended: the wait begins anew."""
        self._moved = time.monotonic()

    def close(self) -> None:
        """Let the thread end once it is idle."""
        self._failed = self._failed or "it was closed"
        self._calls.put(None)

    def _serve(self) -> None:
        while (work := self._calls.get()) is not None:
            work()
