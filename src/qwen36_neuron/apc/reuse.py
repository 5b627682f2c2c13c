"""How soon a checkpoint may be expected to be used again, learned from what became of others like it."""

from __future__ import annotations

import math
from collections import OrderedDict

from .boundaries import Kind
from .groups import Continued, Group, Trait, used_group
from .keys import Key, Path

EXPECTED: dict[Trait, float] = {
    Kind.NAMED: 0.9,
    Kind.BRANCH: 0.8,
    Kind.PROMPT_END: 0.4,
    Kind.PREAMBLE: 0.7,
    Kind.SPACED: 0.05,
    Kind.MESSAGE: 0.1,
    Kind.TURN_END: 0.4,
    Continued.ONE_WAY: 0.15,
    Continued.TWO_WAYS: 0.8,
    Continued.MANY_WAYS: 0.9,
}
"""Chance of being used again before anything was learned; each counts as one observation."""

FADE = 128
"""Observations of a group after which all that is known of it counts half, so that a changed load is learned anew."""

WAIT = 4.0
"""Requests from one use to the next before anything was learned; counts as WAIT_WEIGHT observations, as does what all
traits know for one of them."""
WAIT_WEIGHT = 4
CERTAIN = 0.98
"""The most that is believed of a checkpoint's chance, so that age can always refute it."""


class ReuseEstimator:
    """Counts, for each group, checkpoints that were waiting to be used and those that were, and how long those waited.

    A use ends one wait and begins the next. Checkpoints without a slot wait too, since a group that is never given one
    could not show its worth otherwise: a bounded number of prefixes is remembered, the latest to begin their wait.

    Args:
        memory: prefixes to remember.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.now = 0
        """Requests so far; the pool counts them."""
        self._waiting: OrderedDict[Key, tuple[Group, int]] = OrderedDict()
        self._waits: dict[Group | Trait, float] = {}
        self._uses: dict[Group | Trait, float] = {}
        self._ages: dict[Trait | None, tuple[float, float]] = {}
        """Of waits that ended in a use, how many and the sum of their lengths; of all traits under None."""

    def rate(self, group: Group, age: int) -> float:
        """Chance that the next request uses a checkpoint of `group` that has not been used for `age` requests.

        It is taken to be of one of two sorts: never used again, or used after a wait of the mean length of its trait,
        with no memory of how long it has lasted. The longer it waits, the likelier it is of the first sort:

            still = p * exp(-age / mean)
            rate = still / (still + 1 - p) / mean
        """
        mean = WAIT
        for record in (None, group.trait):
            count, total = self._ages.get(record, (0.0, 0.0))
            mean = (total + mean * WAIT_WEIGHT) / (count + WAIT_WEIGHT)
        mean = max(mean, 1.0)
        chance = min(self.probability(group), CERTAIN)
        still = chance * math.exp(-age / mean)
        return still / (still + 1 - chance) / mean

    def probability(self, group: Group) -> float:
        """Chance that a checkpoint of `group` is used again: the group's record, leaning on that of its trait."""
        trait = (self._uses.get(group.trait, 0.0) + EXPECTED[group.trait]) / (self._waits.get(group.trait, 0.0) + 1)
        return (self._uses.get(group, 0.0) + trait) / (self._waits.get(group, 0.0) + 1)

    def waits(self, key: Key, group: Group) -> None:
        """The prefix `key` begins to wait, as one of `group`."""
        for record in (group, group.trait):
            self._waits[record] = self._waits.get(record, 0.0) + 1
            if self._waits[record] > FADE:
                self._waits[record] /= 2
                self._uses[record] = self._uses.get(record, 0.0) / 2
        self._waiting[key] = group, self.now
        self._waiting.move_to_end(key)
        if len(self._waiting) > self.memory:
            self._waiting.popitem(last=False)

    def group(self, key: Key) -> Group | None:
        """The group in which the prefix is waiting, if it is remembered."""
        waiting = self._waiting.get(key)
        return None if waiting is None else waiting[0]

    def used(self, key: Key) -> None:
        """The prefix was what a request asked for; its wait, if remembered, is over."""
        if (waiting := self._waiting.pop(key, None)) is not None:
            group, since = waiting
            for record in (group, group.trait):
                self._uses[record] = self._uses.get(record, 0.0) + 1
            for trait in (None, group.trait):
                count, total = self._ages.get(trait, (0.0, 0.0))
                if count >= FADE:
                    count, total = count / 2, total / 2
                self._ages[trait] = count + 1, total + self.now - since

    def missed(self, path: Path, limit: int, below: int) -> None:
        """A request with `path` would have used the deepest remembered prefix of `below` + 1 .. `limit` blocks."""
        for blocks in range(min(limit, len(path)), below, -1):
            key = path[blocks - 1]
            if (group := self.group(key)) is not None:
                self.used(key)
                self.waits(key, used_group(group.trait if isinstance(group.trait, Kind) else group.origin, 1))
                return

    def forget(self, key: Key, kind: Kind) -> None:
        """An unused prefix of `kind` gave way to a deeper one of its own request: as if it had never waited."""
        group = self.group(key)
        if group is not None and group.trait is kind:
            del self._waiting[key]
            for record in (group, group.trait):
                self._waits[record] = max(self._waits[record] - 1, 0.0)
