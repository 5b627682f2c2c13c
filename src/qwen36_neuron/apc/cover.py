"""Which KV blocks a checkpoint can use: those of its prefix. All others can never be part of a hit."""

from __future__ import annotations

from collections.abc import Sequence

from .checkpoint import Checkpoint
from .keys import Key


class Cover:
    """Counts, for each prefix key, the published checkpoints that need its block.

    A checkpoint is counted on what lies between its parent and itself, since the parent is counted below. So a
    checkpoint that takes the place of its parent or child changes little, however long the prefix is.
    """

    def __init__(self) -> None:
        self._counts: dict[Key, int] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._counts

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, checkpoint: Checkpoint, children: int) -> None:
        """A checkpoint was published between its parent and the `children` that had that parent so far."""
        self._change(checkpoint, 1 - children)

    def remove(self, checkpoint: Checkpoint, children: int) -> list[Key]:
        """A checkpoint was given up and its `children` now have its parent: the keys that nothing needs any more."""
        return self._change(checkpoint, children - 1)

    def _change(self, checkpoint: Checkpoint, by: int) -> list[Key]:
        freed = []
        if by:
            for key in _own(checkpoint):
                count = self._counts.get(key, 0) + by
                if count:
                    self._counts[key] = count
                else:
                    del self._counts[key]
                    freed.append(key)
        return freed


def _own(checkpoint: Checkpoint) -> Sequence[Key]:
    """Keys between the parent and the checkpoint."""
    return checkpoint.path[checkpoint.parent.blocks if checkpoint.parent else 0 : checkpoint.blocks]
