"""Texts with which sequences began where they left each other.

A shared document mostly has no mark, and stands after other documents each time. But where two sequences first differ,
each begins something of its own, and what was begun there once is often begun again after another prefix.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence

LENGTH = 8
"""Tokens by which a text is known again."""
MEMORY = 256
"""Texts to remember, the latest."""


class Openings:
    """The latest openings of each tenant, who must not learn of another's."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Hashable, tuple[int, ...]], None] = OrderedDict()

    def learn(self, one: Sequence[int], other: Sequence[int], tenant: Hashable = None) -> None:
        """Two continuations of one prefix: remember how each goes on from the first token in which they differ."""
        start = next((i for i, (mine, its) in enumerate(zip(one, other, strict=False)) if mine != its), None)
        if start is None:
            return
        for text in (other, one):
            if len(opening := tuple(text[start : start + LENGTH])) == LENGTH:
                self._known[tenant, opening] = None
                self._known.move_to_end((tenant, opening))
        while len(self._known) > MEMORY:
            self._known.popitem(last=False)

    def places(self, prompt: Sequence[int], start: int, tenant: Hashable = None) -> Iterator[int]:
        """Where a known opening stands in `prompt` from token `start` on, ascending."""
        first = {opening[0] for whose, opening in self._known if whose == tenant}
        for index in range(start, len(prompt) - LENGTH + 1) if first else ():
            if prompt[index] in first and (tenant, tuple(prompt[index : index + LENGTH])) in self._known:
                yield index

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()
