"""Ranks in processes of their own: each runs its kernels here, and meets the others at their collectives."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from .errors import DivergenceError


@dataclass(frozen=True)
class Across:
    """One rank of several processes. All of them launch the same kernels in the same order.

    Attributes:
        rank, world: This process's rank, and how many there are.
        gather: Gives what every process brings to its n-th call, in the order of the ranks; objects that pickle.
    """

    rank: int
    world: int
    gather: Callable[[Any], Sequence[Any]]

    def exchange(self, group: tuple[int, ...], key: tuple[Any, ...], brought: Any) -> list[Any]:
        """What the ranks of a group bring; this rank's is ``brought`` itself.

        Raises:
            DivergenceError: one of them is at something else.
        """
        posts = self.gather((key, brought))
        for rank in group:
            theirs = posts[rank][0]
            if theirs != key:
                text = f"rank {self.rank} is at {key}, rank {rank} at {theirs}"
                raise DivergenceError(str(key[0]), "", text)
        return [brought if rank == self.rank else posts[rank][1] for rank in group]


_current: ContextVar[Across | None] = ContextVar("nki_across", default=None)


def current_across() -> Across | None:
    """What launches made now are a rank of; None: each is all ranks there are."""
    return _current.get()


@contextmanager
def running_across(across: Across) -> Iterator[Across]:
    """Launches made inside are this process's rank of all processes'."""
    token = _current.set(across)
    try:
        yield across
    finally:
        _current.reset(token)
