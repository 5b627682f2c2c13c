"""The checkpoint slots: who holds which, and who gives one up.

A step reserves and publishes slots while it is being scheduled, and steps run one after the other, so a slot has to be
protected only against being given away in the very step that reads or writes it. `new_step` ends that protection.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from ..config import BLOCK_SIZE
from .boundaries import Kind, Plan
from .checkpoint import MANY, Checkpoint, DropReason
from .cost import PrefillCost
from .cover import Cover
from .groups import Group, used_group
from .keys import Key, Path
from .record import WAIT, PrefixUses
from .reuse import ReuseEstimator


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
        self.reuse = ReuseEstimator(8 * num_slots + 64)
        self.cover = Cover()
        """The KV blocks that checkpoints need."""
        self._uncovered: list[Key] = []
        self.requests = 0
        self.by_key: dict[Key, Checkpoint] = {}
        self.by_slot: dict[int, Checkpoint] = {}
        self._free = list(range(1, num_slots + 1))
        self._busy: set[int] = set()
        self._late: list[int] = []
        """Slots that are free from the next step on."""

    # ---- reading -------------------------------------------------------------------------------------------------

    def lookup(self, path: Path, max_tokens: int) -> Checkpoint | None:
        """The deepest published checkpoint on `path` of at most `max_tokens` tokens. Changes nothing."""
        for blocks in range(min(max_tokens // BLOCK_SIZE, len(path)), 0, -1):
            if (found := self.by_key.get(path[blocks - 1])) is not None:
                return found
        return None

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether `checkpoint` still has its slot, reserved or published."""
        return self.by_slot.get(checkpoint.slot) is checkpoint

    # ---- writing, in the order of a step -------------------------------------------------------------------------

    def new_step(self) -> None:
        """What the last step read and wrote is settled."""
        self._busy.clear()
        for slot in self._late:
            heapq.heappush(self._free, slot)
        self._late.clear()

    def admit(self, path: Path, max_tokens: int, restored: Checkpoint | None) -> None:
        """A request begins to run in this step. Called once for each, before it reserves anything.

        Args:
            path: the keys of its tokens.
            max_tokens: tokens that could have been reused: all but the last one.
            restored: what it goes on from. It alone becomes young again.
        """
        self.requests += 1
        self.reuse.now = self.requests
        self.reuse.missed(path, max_tokens // BLOCK_SIZE, restored.blocks if restored else 0)
        if restored is not None:
            restored.hits += 1
            restored.used_at = self.requests
            restored.see(path)
            restored.group = used_group(restored.kind, len(restored.continuations))
            restored.record = self.reuse.record(restored.group)
            self.reuse.used(restored.key)
            self.reuse.waits(restored.key, restored.group)
            self._busy.add(restored.slot)

    def reserve(self, boundary: int, plan: Plan, path: Path, replaces: Checkpoint | None = None) -> Checkpoint | None:
        """Take a slot for a boundary that this step reaches. Lookups do not find it before `publish`.

        Args:
            boundary: tokens of the prefix.
            plan: the request's.
            path: the request's keys as far as they are known; draft tokens have none yet.
            replaces: what the same request reserved before while decoding, if anything: given up for this one, unless
                somebody has used it or this very step writes it.

        Returns:
            The checkpoint. None if the plan leaves the boundary out, if the prefix is held already, or if it is worth
            less than everything that is held.
        """
        kind, blocks = plan.kind(boundary), boundary // BLOCK_SIZE
        known = len(path) >= blocks
        if not self.num_slots or kind is None or (known and path[blocks - 1] in self.by_key):
            return None
        if replaces and self.holds(replaces) and not replaces.hits and replaces.slot not in self._busy:
            self.drop(replaces, DropReason.SUPERSEDED)
        parent = self.lookup(path, boundary - BLOCK_SIZE)
        group = Group(kind, plan.origin, plan.quarter(boundary))
        record = self.reuse.record(group)
        checkpoint = Checkpoint(0, boundary, kind, group, record, path, self.requests, parent)
        if known:
            self._wait(checkpoint)
        if not self._free and not self._make_room(self.priority(checkpoint)):
            return None
        checkpoint.slot = heapq.heappop(self._free)
        self.by_slot[checkpoint.slot] = checkpoint
        self._busy.add(checkpoint.slot)
        return checkpoint

    def publish(self, checkpoint: Checkpoint, path: Path) -> bool:
        """Let lookups find a reserved checkpoint: its tokens are certain and its step is scheduled.

        Args:
            checkpoint: what `reserve` gave.
            path: the request's keys, at least to the boundary.

        Returns:
            Whether it is held. False if another request published the same prefix first: the slot is free again after
            this step, which may write it: where drafts crossed the boundary, its request learnt of the slot before.
        """
        checkpoint.path = path
        if checkpoint.key in self.by_key:
            self.drop(checkpoint, DropReason.DUPLICATE)
            self._free.remove(checkpoint.slot)
            heapq.heapify(self._free)
            self._late.append(checkpoint.slot)
            return False
        parent = checkpoint.parent = self.lookup(path, checkpoint.boundary)
        children = 0
        for other in self.by_key.values():
            if other.parent is parent and other.boundary > checkpoint.boundary and checkpoint.is_on(other.path):
                other.parent = checkpoint
                children += 1
                checkpoint.see(other.path)
        below = parent
        while below is not None:
            below.see(path)
            below = below.parent
        self.cover.add(checkpoint, children)
        checkpoint.published = True
        self.by_key[checkpoint.key] = checkpoint
        self._busy.add(checkpoint.slot)  # where drafts crossed the boundary, it was reserved in an earlier step
        self._wait(checkpoint)
        return True

    def drop(self, checkpoint: Checkpoint, reason: DropReason) -> None:
        """Give up a checkpoint, published or only reserved. Its slot is free at once.

        Raises:
            ValueError: it does not have its slot any more.
        """
        if not self.holds(checkpoint):
            raise ValueError(f"the checkpoint of {checkpoint.boundary} tokens does not hold slot {checkpoint.slot}")
        children = [other for other in self.by_slot.values() if other.parent is checkpoint]
        if checkpoint.published:
            if self.on_drop is not None:
                self.on_drop(checkpoint, reason)
            del self.by_key[checkpoint.key]
            self._uncovered += self.cover.remove(checkpoint, sum(child.published for child in children))
            checkpoint.published = False
        for child in children:
            child.parent = checkpoint.parent
        del self.by_slot[checkpoint.slot]
        self._busy.discard(checkpoint.slot)
        heapq.heappush(self._free, checkpoint.slot)

    def clear(self) -> None:
        """Give up everything, as when the weights change."""
        for checkpoint in list(self.by_slot.values()):
            self.drop(checkpoint, DropReason.RESET)

    # ---- KV --------------------------------------------------------------------------------------------------------

    def give_up_kv(self, idle: Callable[[Checkpoint], bool]) -> bool:
        """Give up the checkpoint least likely to be used among those that alone need KV blocks, the deepest first.

        Those are all that no other one has below it: only its own prefix goes through its last block.

        Args:
            idle: whether giving a checkpoint up would set KV free, and may be done.

        Returns:
            Whether there was one.
        """
        parents = {checkpoint.parent for checkpoint in self.by_key.values()}
        least: tuple[float, int, int] | None = None
        victim = None
        for checkpoint in self.by_key.values():
            if checkpoint in parents or checkpoint.slot in self._busy:
                continue
            rank = self._kv_rate(checkpoint), -checkpoint.boundary, checkpoint.slot
            if (least is None or rank < least) and idle(checkpoint):
                least, victim = rank, checkpoint
        if victim is None:
            return False
        self.drop(victim, DropReason.KV)
        return True

    def take_uncovered(self) -> list[Key]:
        """Keys of the blocks that checkpoints given up since the last call were the last to need."""
        taken = [key for key in self._uncovered if key not in self.cover]
        self._uncovered.clear()
        return taken

    # ---- what a checkpoint is worth ------------------------------------------------------------------------------

    def priority(self, checkpoint: Checkpoint) -> float:
        """FLOPs that it may be expected to save the next request. All slots take the same bytes.

        What it saves is what lies between it and the checkpoint below, from which a request would go on without it. So
        one of two neighbours can go cheaply, and then the other is worth both.
        """
        saved = self.cost.between(checkpoint.base, checkpoint.boundary)
        age, own = self.requests - checkpoint.used_at, self._shared(checkpoint)
        forecast = self.reuse.forecast(checkpoint.record)
        return (forecast.rate(age) if own is None else forecast.shared_rate(age, own)) * saved

    def _shared(self, checkpoint: Checkpoint) -> PrefixUses | None:
        """The uses of a shared beginning; None for any other prefix.

        A prefix that was used once and followed in two ways may well be the middle of one conversation: the way that
        its own request took, and the one that the next turn did. Before an opening that is not so.
        """
        ways = len(checkpoint.continuations)
        own = self.reuse.uses(checkpoint.key) if ways > 1 else None
        if own is None:
            return None
        return own if checkpoint.kind is Kind.OPENING or ways >= MANY or own.count > 1 else None

    def _kv_rate(self, checkpoint: Checkpoint) -> float:
        """How likely the next request is to use what KV a checkpoint alone needs.

        All tokens cost about the same bytes and FLOPs, so the rate alone says what a block is worth. Beginnings that
        are shared have one of their own; of the others the latest used are the likeliest.
        """
        age, own = self.requests - checkpoint.used_at, self._shared(checkpoint)
        return 1 / (WAIT + age) if own is None else self.reuse.forecast(checkpoint.record).frequency(age, own)

    def _make_room(self, priority: float) -> bool:
        """Give up the checkpoint of least priority, if it has less than `priority`; among equals the lowest slot."""
        least, victim = priority, None
        for checkpoint in self.by_key.values():
            if checkpoint.slot in self._busy:
                continue
            worth = self.priority(checkpoint)
            if worth < least or (victim is not None and worth == least and checkpoint.slot < victim.slot):
                least, victim = worth, checkpoint
        if victim is None:
            return False
        self.drop(victim, DropReason.CAPACITY)
        return True

    def _wait(self, checkpoint: Checkpoint) -> None:
        """Begin to learn what becomes of a checkpoint, slot or not. Of a decoding request only the last one counts.

        What is remembered of its prefix may be of uses from before it had this slot.
        """
        if checkpoint.kind is Kind.TURN_END and checkpoint.blocks > 1:
            self.reuse.forget(checkpoint.path[checkpoint.blocks - 2], Kind.TURN_END)
        remembered = self.reuse.group(checkpoint.key)
        if remembered is None:
            self.reuse.waits(checkpoint.key, checkpoint.group)
        else:
            checkpoint.group, checkpoint.record = remembered, self.reuse.record(remembered)
