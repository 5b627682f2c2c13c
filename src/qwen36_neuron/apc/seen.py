"""Sequences that were run before, whether or not anything of them is still held."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence

from ..config import BLOCK_SIZE
from .keys import Key, Path
from .openings import LENGTH, Openings


class SeenPrefixes:
    """A bounded memory of prefixes, which shows where a new request leaves an earlier one, and with which text.

    Args:
        memory: blocks to remember, those of the latest sequences, and of each its beginning rather than its end.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._after: OrderedDict[Key, Sequence[int]] = OrderedDict()
        """Of each prefix the tokens that last followed it: a block, and as much as it takes to know a text again."""
        self._openings = Openings()

    def match(self, path: Path, limit: int) -> int:
        """Blocks of the longest remembered prefix of `path`, at most `limit`."""
        limit = min(limit, len(path))
        return next((n for n in range(limit) if path[n] not in self._after), limit)

    def openings(self, path: Path, prompt: Sequence[int], start: int, tenant: Hashable = None) -> Iterator[int]:
        """Learn from where a request leaves an earlier one, and find the texts in it that were begun elsewhere before.

        Args:
            path: the keys of the prompt's full blocks.
            prompt: its token ids.
            start: tokens before which nothing is looked for.
            tenant: whose it is; what others wrote is not looked for.

        Returns:
            Tokens before which such a text begins, ascending.
        """
        if blocks := self.match(path, len(prompt) // BLOCK_SIZE):
            self._openings.learn(_after(prompt, blocks), self._after[path[blocks - 1]], tenant)
        return self._openings.places(prompt, start, tenant)

    def add(self, path: Path, tokens: Sequence[int]) -> None:
        """A sequence of `tokens` has run; `path` are the keys of its full blocks."""
        for blocks in range(len(path), 0, -1):
            self._after[path[blocks - 1]] = _after(tokens, blocks)
            self._after.move_to_end(path[blocks - 1])
        while len(self._after) > self.memory:
            self._after.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._after.clear()
        self._openings.clear()


def _after(tokens: Sequence[int], blocks: int) -> Sequence[int]:
    return tokens[blocks * BLOCK_SIZE : (blocks + 1) * BLOCK_SIZE + LENGTH]
