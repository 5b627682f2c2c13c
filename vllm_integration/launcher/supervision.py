"""Two processes watched as one: if either ends, the other is stopped; a signal stops both, the proxy first.

Signals and the ends of children arrive as bytes in a pipe, which the one loop here reads, so that nothing is missed
between two looks and no handler does any work. Handlers are installed for signals that were ignored when the launcher
began, too (`nohup`, or a shell's `trap '' INT`): it can always be stopped.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

STOPS = (signal.SIGTERM, signal.SIGINT)

VLLM_TIMEOUT = 30.0
"""Seconds that vLLM is given to end."""

PROXY_TIMEOUT = 10.0
"""Seconds that the proxy is given to end when there is no vLLM behind it."""

DRAIN_MARGIN = 15.0
"""Seconds that the proxy is given beyond its drain."""

Note = Callable[[str], None]


class Signals:
    """The signals that this process receives, in their order. A context: the handlers are its own while it is open."""

    def __enter__(self) -> Signals:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        os.set_blocking(self._read, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        watched = [*STOPS, signal.SIGCHLD]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored by nohup: the server outlives its terminal
            watched.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, lambda *_: None) for number in watched}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)

    def wait(self, seconds: float | None = None) -> int:
        """Wait for a signal or the end of a child; gives how many stops were asked for meanwhile."""
        if not select.select([self._read], [], [], seconds)[0]:
            return 0
        received = os.read(self._read, 4096)
        return sum(number != signal.SIGCHLD for number in received)


class Child:
    """A process in a session of its own, so that Ctrl-C reaches the launcher alone and the order of a stop is kept."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self._process = subprocess.Popen(command, env=environment, start_new_session=True)
        self.pid = self._process.pid

    def status(self) -> int | None:
        """How it ended, as a shell says it: 128 and the signal's number where a signal ended it. None while it runs."""
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    def terminate(self) -> None:
        self._process.terminate()

    def kill_group(self) -> None:
        """End whatever it started and left behind, and itself."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self, signals: Signals, seconds: float) -> int:
        """SIGTERM, then SIGKILL for its whole group when the time given is over; gives its status.

        A stop that is asked for again meanwhile is passed on: the proxy then cuts what is still running.
        """
        self.terminate()
        deadline = time.monotonic() + seconds
        while self.status() is None and (left := deadline - time.monotonic()) > 0:
            if signals.wait(left):
                self.terminate()
        self.kill_group()
        status = self.status()
        assert status is not None  # its group was killed and it was waited for
        return status


def supervise(
    vllm: Sequence[str],
    proxy: Sequence[str],
    environment: Mapping[str, str],
    *,
    url: str,
    drain_timeout: float,
    note: Note,
) -> int:
    """Run vLLM and the proxy until one ends or a stop is asked for; gives the status to end with.

    Args:
        url: where the proxy listens, for a message.
        drain_timeout: seconds that running requests are given.
        note: takes messages for the user.
    Returns:
        0 after a stop that was asked for and went well; otherwise the status of what ended, and 1 where that was 0.
    """
    with Signals() as signals, _no_one_left() as children:
        engine = Child("vLLM", vllm, environment)
        children.append(engine)
        front = Child("the proxy", proxy, environment)
        children.append(front)
        note(f"vLLM is process {engine.pid}, the proxy is process {front.pid}; {url}/health says when it is ready")

        asked = False
        while not asked and engine.status() is None and front.status() is None:
            asked = signals.wait() > 0
        if not asked and (status := engine.status()) is not None:
            note(f"vLLM ended with status {status}; stopping the proxy")
            engine.kill_group()
            front.stop(signals, PROXY_TIMEOUT)
            return status or 1
        if not asked and (status := front.status()) is not None:
            note(f"the proxy ended with status {status}; stopping vLLM")
            engine.stop(signals, VLLM_TIMEOUT)
            return status or 1

        note(f"stopping: running requests have {drain_timeout:g} s to end")
        first = front.stop(signals, drain_timeout + DRAIN_MARGIN)
        second = engine.stop(signals, VLLM_TIMEOUT)
        note(f"stopped: proxy status {first}, vLLM status {second}")
        # vLLM may end by the signal that it was sent, which is the stop asked for.
        return 0 if first == 0 and second in (0, 128 + signal.SIGTERM) else 1


@contextlib.contextmanager
def _no_one_left() -> Iterator[list[Child]]:
    """Children that are gone at the end, however that comes."""
    children: list[Child] = []
    try:
        yield children
    finally:
        for child in children:
            child.kill_group()


def become(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Turn this process into `command`, which a signal can stop even where it was ignored here."""
    for number in STOPS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(command[0], list(command), dict(environment))
