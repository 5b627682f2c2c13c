"""The checkpoint slots: a private pool of fixed size, found by the hash of the prefix they hold the state of."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass

from vllm.v1.core.kv_cache_utils import BlockHash


@dataclass(slots=True)
class Checkpoint:
    """A slot that holds, or is about to hold, the state after `boundary` tokens of a prefix.

    Attributes:
        slot: its id, 1 .. num_slots.
        key: hash of the prefix, vLLM's block hash of its last block.
        boundary: tokens of the prefix.
        used_at: step of its last use, or of its making.
        hits: requests that restored it.
    """

    slot: int
    key: BlockHash
    boundary: int
    used_at: int
    hits: int = 0


class SlotPool:
    """Slots 1 .. num_slots. A slot read or written in a step is not given to anyone else before the next step.

    Steps run one after the other in one worker, so nothing longer than a step has to be protected, and no reference
    counts are needed.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.by_key: dict[BlockHash, Checkpoint] = {}
        self.by_slot: dict[int, Checkpoint] = {}
        self.evictions: Counter[str] = Counter()
        self.step = 0
        self._free = list(range(1, num_slots + 1))
        self._busy: set[int] = set()

    @property
    def in_use(self) -> int:
        """Slots that hold a checkpoint."""
        return len(self.by_slot)

    def new_step(self) -> None:
        """What the last step read and wrote is settled."""
        self.step += 1
        self._busy.clear()

    @property
    def has_room(self) -> bool:
        """Whether a slot is free."""
        return bool(self._free)

    def idle(self) -> list[Checkpoint]:
        """Checkpoints that this step neither reads nor writes: those that can be given up."""
        return [checkpoint for checkpoint in self.by_slot.values() if checkpoint.slot not in self._busy]

    def add(self, key: BlockHash, boundary: int) -> Checkpoint:
        """Give a free slot to the prefix `key`, which must not have one yet and which this step writes."""
        if key in self.by_key:
            raise ValueError(f"the prefix of {boundary} tokens already has slot {self.by_key[key].slot}")
        checkpoint = Checkpoint(heapq.heappop(self._free), key, boundary, self.step)
        self.by_key[key] = self.by_slot[checkpoint.slot] = checkpoint
        self._busy.add(checkpoint.slot)
        return checkpoint

    def use(self, checkpoint: Checkpoint) -> None:
        """A request of this step restores `checkpoint`."""
        checkpoint.used_at = self.step
        checkpoint.hits += 1
        self._busy.add(checkpoint.slot)

    def drop(self, checkpoint: Checkpoint, reason: str) -> None:
        """Forget `checkpoint`; its slot is free at once."""
        del self.by_key[checkpoint.key], self.by_slot[checkpoint.slot]
        self._busy.discard(checkpoint.slot)
        heapq.heappush(self._free, checkpoint.slot)
        self.evictions[reason] += 1

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether `checkpoint` is still there; its slot may by now hold another."""
        return self.by_slot.get(checkpoint.slot) is checkpoint
