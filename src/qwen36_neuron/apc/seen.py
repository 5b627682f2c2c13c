"""Prefixes that were run before, whether or not anything of them is still held."""

from __future__ import annotations

from collections import OrderedDict

from .keys import Key, Path


class SeenPrefixes:
    """A bounded memory of prefix keys, which shows where a new request leaves an earlier one.

    Args:
        memory: keys to remember, those of the latest sequences, and of each its beginning rather than its end.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._keys: OrderedDict[Key, None] = OrderedDict()

    def match(self, path: Path, limit: int) -> int:
        """Blocks of the longest remembered prefix of `path`, at most `limit`."""
        limit = min(limit, len(path))
        return next((n for n in range(limit) if path[n] not in self._keys), limit)

    def add(self, path: Path) -> None:
        """A sequence with `path` has run."""
        for key in reversed(path):
            self._keys[key] = None
            self._keys.move_to_end(key)
        while len(self._keys) > self.memory:
            self._keys.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._keys.clear()
