"""The checkpoint slots: who holds which, and who gives one up.

Paths. A prefix is known by the keys of its blocks: `path[i]` stands for the first (i + 1) * BLOCK_SIZE tokens, so that
equal keys mean equal prefixes (vLLM's chained block hashes are such keys). A checkpoint keeps a reference to the path
of the request that made it; the path may grow behind it but must not change.

Order. A step reserves and publishes slots while it is being scheduled, and steps run one after the other, so a slot has
to be protected only against being given away in the very step that reads or writes it. `new_step` ends that protection.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from ..config import BLOCK_SIZE
from .boundaries import Kind
from .cost import PrefillCost

Key = Hashable
Path = Sequence[Key]

MANY = 8
"""Different continuations after which one more says nothing new."""
PASSED = 0.125
"""Weight of a checkpoint in the middle of the only sequence that ever went through it."""
FRESH = {
    Kind.NAMED: 4.0,
    Kind.BRANCH: 2.0,
    Kind.PROMPT_END: 1.0,
    Kind.PREAMBLE: 2.0,
    Kind.SPACED: 0.25,
    Kind.MESSAGE: 0.25,
    Kind.TURN_END: 1.0,
}
"""Weights of checkpoints that nothing is known of but why they were made."""


class DropReason(Enum):
    """Why a checkpoint was given up."""

    CAPACITY = "capacity"
    """Another one was worth more."""
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
        path: keys of the prefix, and of what its maker had behind it.
        published: whether lookups find it.
        hits: requests that restored it.
        floor: age: the pool's `inflation` when it was made or last used.
        parent: the deepest published checkpoint below it on its path, from which a request would go on without it.
        children: published checkpoints whose parent it is.
        continuations: keys of the different blocks that were seen to follow it, MANY at most.
    """

    slot: int
    boundary: int
    kind: Kind
    path: Path
    floor: float
    parent: Checkpoint | None = None
    children: int = 0
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


class SlotPool:
    """Slots 1 .. num_slots.

    Args:
        num_slots: how many there are; with 0 everything is refused.
        cost: what a prefix costs to compute.
        on_drop: called with every published checkpoint that is given up, before its slot is free.
    """

    def __init__(
        self, num_slots: int, cost: PrefillCost, on_drop: Callable[[Checkpoint, DropReason], None] | None = None
    ) -> None:
        self.num_slots = num_slots
        self.cost = cost
        self.on_drop = on_drop
        self.inflation = 0.0
        self.by_key: dict[Key, Checkpoint] = {}
        self.by_slot: dict[int, Checkpoint] = {}
        self._free = list(range(1, num_slots + 1))
        self._busy: set[int] = set()

    # ---- reading -------------------------------------------------------------------------------------------------

    def lookup(self, path: Path, max_tokens: int) -> Checkpoint | None:
        """The deepest published checkpoint on `path` of at most `max_tokens` tokens. Changes nothing."""
        for blocks in range(min(max_tokens // BLOCK_SIZE, len(path)), 0, -1):
            if (found := self.by_key.get(path[blocks - 1])) is not None:
                return found
        return None

    def use(self, checkpoint: Checkpoint, path: Path) -> None:
        """A request with `path`, scheduled in this step, restores `checkpoint`. It alone becomes young again."""
        checkpoint.hits += 1
        checkpoint.floor = self.inflation
        self._see(checkpoint, path)
        self._busy.add(checkpoint.slot)

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether `checkpoint` still has its slot, reserved or published."""
        return self.by_slot.get(checkpoint.slot) is checkpoint

    # ---- writing -------------------------------------------------------------------------------------------------

    def new_step(self) -> None:
        """What the last step read and wrote is settled."""
        self._busy.clear()

    def reserve(self, boundary: int, kind: Kind, path: Path, replaces: Checkpoint | None = None) -> Checkpoint | None:
        """Take a slot for a boundary that this step writes. Lookups do not find it before `publish`.

        Args:
            boundary: tokens of the prefix.
            kind: why it is kept.
            path: the request's keys as far as they are known; draft tokens have none yet.
            replaces: what the same request reserved before while decoding, if anything: given up for this one, unless
                somebody has used it or this very step writes it.

        Returns:
            The checkpoint, or None if the prefix is held already, or is worth less than everything that is held.
        """
        if len(path) * BLOCK_SIZE >= boundary and path[boundary // BLOCK_SIZE - 1] in self.by_key:
            return None
        if replaces and self.holds(replaces) and not replaces.hits and replaces.slot not in self._busy:
            self.drop(replaces, DropReason.SUPERSEDED)
        parent = self.lookup(path, boundary - BLOCK_SIZE)
        checkpoint = Checkpoint(0, boundary, kind, path, self.inflation, parent)
        if not self._free and not self._make_room(self.priority(checkpoint)):
            return None
        checkpoint.slot = heapq.heappop(self._free)
        self.by_slot[checkpoint.slot] = checkpoint
        self._busy.add(checkpoint.slot)
        return checkpoint

    def publish(self, checkpoint: Checkpoint, path: Path, replaces: Checkpoint | None = None) -> bool:
        """Let lookups find a reserved checkpoint: its tokens are certain and its step is scheduled.

        Args:
            checkpoint: what `reserve` gave.
            path: the request's keys, at least to the boundary.
            replaces: as for `reserve`, where it was not given there.

        Returns:
            Whether it is held. False if another request published the same prefix first: the slot is free again.
        """
        checkpoint.path = path
        if checkpoint.key in self.by_key:
            self.drop(checkpoint, DropReason.DUPLICATE)
            return False
        parent = checkpoint.parent = self.lookup(path, checkpoint.boundary)
        for other in self.by_slot.values():
            if not other.published:
                continue
            if other.parent is parent and other.boundary > checkpoint.boundary and checkpoint.is_on(other.path):
                self._adopt(other, checkpoint)
                self._see(checkpoint, other.path)
            elif other.boundary < checkpoint.boundary and other.is_on(path):
                self._see(other, path)
        checkpoint.published = True
        self.by_key[checkpoint.key] = checkpoint
        if parent:
            parent.children += 1
        if replaces is not None and self.holds(replaces) and not replaces.hits:
            self.drop(replaces, DropReason.SUPERSEDED)
        return True

    def drop(self, checkpoint: Checkpoint, reason: DropReason) -> None:
        """Give up a checkpoint, published or only reserved. Its slot is free at once.

        Raises:
            ValueError: it does not have its slot any more.
        """
        if not self.holds(checkpoint):
            raise ValueError(f"the checkpoint of {checkpoint.boundary} tokens does not hold slot {checkpoint.slot}")
        if checkpoint.published:
            if self.on_drop is not None:
                self.on_drop(checkpoint, reason)
            del self.by_key[checkpoint.key]
            checkpoint.published = False
            if checkpoint.parent:
                checkpoint.parent.children -= 1
        for other in self.by_slot.values():
            if other.parent is checkpoint:
                self._adopt(other, checkpoint.parent)
        del self.by_slot[checkpoint.slot]
        self._busy.discard(checkpoint.slot)
        heapq.heappush(self._free, checkpoint.slot)

    def clear(self) -> None:
        """Give up everything, as when the weights change."""
        for checkpoint in list(self.by_slot.values()):
            self.drop(checkpoint, DropReason.RESET)
        heapq.heapify(self._free)

    # ---- what a checkpoint is worth ---------------------------------------------------------------------------------

    def priority(self, checkpoint: Checkpoint) -> float:
        """What giving it up would cost, in FLOPs expected, on top of its age. All slots take the same bytes.

        GreedyDual (Young 1994; with sizes and costs Cao and Irani 1997): a priority is the value plus the inflation at
        the last use, the least priority goes, and the inflation becomes that priority. A checkpoint that is not used
        is thus given up after the others turned over by its own value.
        """
        return checkpoint.floor + self._weight(checkpoint) * self.cost.between(checkpoint.base, checkpoint.boundary)

    def _weight(self, checkpoint: Checkpoint) -> float:
        """How likely a coming request is to restore just it, on a scale where a fresh end of prompt has 1."""
        if len(checkpoint.continuations) > 1:
            return min(len(checkpoint.continuations), MANY)
        if checkpoint.children:
            return PASSED
        return FRESH[checkpoint.kind]

    def _make_room(self, priority: float) -> bool:
        """Give up the checkpoint of least priority if that is less than `priority`. Time passes for the rest anyway."""
        idle = [c for c in self.by_slot.values() if c.published and c.slot not in self._busy]
        if not idle:
            return False
        victim = min(idle, key=lambda c: (self.priority(c), c.slot))
        least = self.priority(victim)
        self.inflation = max(self.inflation, min(least, priority))
        if least >= priority:
            return False
        self.drop(victim, DropReason.CAPACITY)
        return True

    # ---- the tree that checkpoints form ------------------------------------------------------------------------------

    @staticmethod
    def _adopt(child: Checkpoint, parent: Checkpoint | None) -> None:
        """Make `parent` the one from which `child` would be recomputed."""
        if child.published:
            if child.parent and child.parent.published:
                child.parent.children -= 1
            if parent:
                parent.children += 1
        child.parent = parent

    @staticmethod
    def _see(checkpoint: Checkpoint, path: Path) -> None:
        """Note which block follows `checkpoint` on `path`, if that is known."""
        if len(path) > checkpoint.blocks and len(checkpoint.continuations) < MANY:
            checkpoint.continuations.add(path[checkpoint.blocks])
