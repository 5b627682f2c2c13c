"""Calls that may never come back, made from a thread of their own."""

from __future__ import annotations

import queue
import threading
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
        threading.Thread(target=self._serve, name="neuron-device", daemon=True).start()

    def call(self, function: Callable[..., T], *args: Any, timeout: float, what: str) -> T:
        """The result of `function(*args)`.

        Args:
            timeout: seconds to wait.
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

        self._calls.put(work)
        try:
            result, error = outcome.get(timeout=timeout)
        except queue.Empty:
            self._failed = f"{what} did not end in {timeout:g} s"
            raise DeviceError(f"{self._failed}: the device hangs; see neuron-top and restart the server") from None
        if error is not None:
            self._failed = f"{what}: {error}"
            raise DeviceError(f"{what} failed on the device: {error}") from error
        return result  # type: ignore[return-value]

    def close(self) -> None:
        """Let the thread end once it is idle."""
        self._failed = self._failed or "it was closed"
        self._calls.put(None)

    def _serve(self) -> None:
        while (work := self._calls.get()) is not None:
            work()
