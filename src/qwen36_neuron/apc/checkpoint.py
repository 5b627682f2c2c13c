"""A state checkpoint and the reasons to give one up."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from ..config import BLOCK_SIZE
from .boundaries import Kind
from .groups import Group
from .keys import Key, Path
from .record import GroupStatistics

MANY = 3
"""Different continuations after which one more says nothing new."""


class DropReason(Enum):
    """Why a checkpoint was given up."""

    CAPACITY = "capacity"
    """Another one was worth more."""
    KV = "kv"
    """Its KV blocks were needed, and it was the least likely to be used."""
    SUPERSEDED = "superseded"
    """Its own request went on decoding and made a deeper one."""
    ORPHANED = "orphaned"
    """Its KV blocks are gone, and a hit needs both."""
    UNWRITTEN = "unwritten"
    """The step that was to write it did not run."""
    DUPLICATE = "duplicate"
    """Another request published the same prefix first."""
    RESET = "reset"
    """The whole cache was reset."""


@dataclass(slots=True, eq=False)
class Checkpoint:
    """A slot that holds, or is reserved for, the state after `boundary` tokens.

    Attributes:
        slot: its id, 1 .. num_slots.
        boundary: tokens of the prefix, a multiple of BLOCK_SIZE.
        kind: why it is kept.
        group: those that it is expected to fare like; another one once it has been used.
        record: what is known of the group.
        path: keys of the prefix, and of what its maker had behind it. It may grow there, but must not change.
        used_at: request, by count, that made it or last used it.
        parent: the deepest published checkpoint below it on its path, from which a request would go on without it.
        published: whether lookups find it.
        hits: requests that restored it.
        continuations: keys of the different blocks that were seen to follow it, MANY at most.
    """

    slot: int
    boundary: int
    kind: Kind
    group: Group
    record: GroupStatistics
    path: Path
    used_at: int
    parent: Checkpoint | None = None
    published: bool = False
    hits: int = 0
    continuations: set[Key] = field(default_factory=set)

    @property
    def blocks(self) -> int:
        """Blocks of the prefix."""
        return self.boundary // BLOCK_SIZE

    @property
    def key(self) -> Key:
        """Key of the prefix. Known once the path reaches it, so always when published."""
        return self.path[self.blocks - 1]

    @property
    def base(self) -> int:
        """Tokens from which a request would go on without it."""
        return self.parent.boundary if self.parent else 0

    def is_on(self, path: Path) -> bool:
        """Whether `path` goes through this prefix."""
        return len(path) >= self.blocks and path[self.blocks - 1] == self.key

    def see(self, path: Path) -> None:
        """Note which block follows it on `path`, if that is known."""
        if len(path) > self.blocks and len(self.continuations) < MANY:
            self.continuations.add(path[self.blocks])
