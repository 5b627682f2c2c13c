"""Programs that run by turns: one at a time, each until it waits for others or ends, so that a run is repeatable."""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import DivergenceError

Key = tuple[Any, ...]
Place = tuple[Hashable, int]


class _Abort(BaseException):
    """Ends a program because another one failed."""


@dataclass
class _Meeting:
    """Who has come to a meeting so far.

    Attributes:
        posts: Program -> (what it does there, what it brings).
        left: Members that have taken what was brought.
    """

    posts: dict[int, tuple[Key, Any]] = field(default_factory=dict)
    left: int = 0


class Turns:
    """The turns of some programs.

    Args:
        labels: What messages call each program.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels
        self.errors: list[BaseException | None] = [None] * len(labels)
        self._turn = [threading.Semaphore(0) for _ in labels]
        self._done = [False] * len(labels)
        self._awaited: list[tuple[Place, tuple[int, ...], Key] | None] = [None] * len(labels)
        self._count: dict[tuple[Hashable, int], int] = {}
        self._meetings: dict[Place, _Meeting] = {}

    def run(self, program: Callable[[int], None]) -> None:
        """Run ``program(i)`` for every program; what they raise is in ``errors``."""

        def body(me: int) -> None:
            self._turn[me].acquire()
            try:
                if not any(self.errors):
                    program(me)
            except BaseException as error:
                if not isinstance(error, _Abort):
                    self.errors[me] = error
            finally:
                self._done[me] = True
                self._hand_on(me)

        if len(self.labels) == 1:
            self._turn[0].release()
            body(0)
            return
        threads = [threading.Thread(target=body, args=(i,), daemon=True) for i in range(len(self.labels))]
        for t in threads:
            t.start()
        self._turn[0].release()
        for t in threads:
            t.join()

    def upcoming(self, me: int, channel: Hashable) -> Place:
        """Name of the next meeting of ``me`` on a channel."""
        return channel, self._count.get((channel, me), 0)

    def meet(self, me: int, channel: Hashable, members: tuple[int, ...], key: Key, payload: Any) -> list[Any]:
        """Wait for all members at their next meeting on ``channel``; returns what each brings, in their order.

        Raises:
            DivergenceError: a member does something else there (another ``key``), or will never come.
        """
        place = self.upcoming(me, channel)
        self._count[channel, me] = place[1] + 1
        meeting = self._meetings.setdefault(place, _Meeting())
        for other, (theirs, _) in meeting.posts.items():
            if theirs != key:
                text = f"{self.labels[me]} is at {_text(key)}, {self.labels[other]} at {_text(theirs)}"
                raise DivergenceError(str(key[0]), "", text)
        meeting.posts[me] = (key, payload)
        self._awaited[me] = (place, members, key)
        while not self._ready(me):
            if self._hand_on(me):
                self._turn[me].acquire()
            else:
                raise DivergenceError(str(key[0]), "", self._deadlock(me))
            if any(self.errors):
                raise _Abort
        self._awaited[me] = None
        meeting.left += 1
        if meeting.left == len(members):
            del self._meetings[place]
        return [meeting.posts[m][1] for m in members]

    def _ready(self, who: int) -> bool:
        awaited = self._awaited[who]
        if awaited is None:
            return True
        place, members, _ = awaited
        posts = self._meetings[place].posts
        return all(m in posts for m in members)

    def _hand_on(self, me: int) -> bool:
        """Let the next program go on that can; False if there is none. One that ends wakes others to find that out."""
        count = len(self.labels)
        order = [(me + k) % count for k in range(1, count)]
        alive = [i for i in order if not self._done[i]]
        able = [i for i in alive if self._ready(i) or any(self.errors)]
        if not able and self._done[me]:
            able = alive
        if able:
            self._turn[able[0]].release()
        return bool(able)

    def _deadlock(self, me: int) -> str:
        awaited = self._awaited[me]
        assert awaited is not None
        place, members, key = awaited
        posts = self._meetings[place].posts
        others = []
        for m in members:
            if m in posts:
                continue
            where = self._awaited[m]
            does = "ended without it" if where is None else f"waits at {_text(where[2])}"
            others.append(f"{self.labels[m]} {does}")
        return f"{self.labels[me]} waits at {_text(key)}, {', '.join(others)}"


def _text(key: Key) -> str:
    return str(key[0]) if len(key) == 1 else f"{key[0]} {key[1:]}"
