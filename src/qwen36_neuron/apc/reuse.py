"""How soon a checkpoint may be expected to be used again, learned from what became of others like it."""

from __future__ import annotations

from collections import OrderedDict

from .boundaries import Kind
from .groups import Continued, Group, Trait, used_group
from .keys import Key, Path
from .record import GroupStatistics, PrefixUses, ReuseForecast, ReuseIntervals

EXPECTED: dict[Trait, float] = {
    Kind.NAMED: 0.9,
    Kind.BRANCH: 0.8,
    Kind.PROMPT_END: 0.4,
    Kind.PREAMBLE: 0.7,
    Kind.OPENING: 0.9,
    Kind.SPACED: 0.05,
    Kind.MESSAGE: 0.1,
    Kind.TURN_END: 0.4,
    Continued.ONE_WAY: 0.15,
    Continued.TWO_WAYS: 0.8,
    Continued.MANY_WAYS: 0.9,
}
"""Chance of being used again before anything was learned; each counts as one observation."""


class ReuseEstimator:
    """Counts, for each group, checkpoints that were waiting to be used and those that were, and how long those waited.

    A use ends one wait and begins the next. Checkpoints without a slot wait too, since a group that is never given one
    could not show its worth otherwise: a bounded number of prefixes is remembered, the latest to begin their wait.

    Args:
        memory: prefixes to remember: of those that wait, and of those that were used.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.now = 0
        """Requests so far; the pool counts them."""
        self._waiting: OrderedDict[Key, tuple[Group, int]] = OrderedDict()
        self._uses: OrderedDict[Key, PrefixUses] = OrderedDict()
        self._records: dict[Group, GroupStatistics] = {}
        self._forecasts: dict[GroupStatistics, ReuseForecast] = {}
        """What records say, until something is learned."""
        lengths = ReuseIntervals()
        self._traits = {trait: GroupStatistics(ReuseIntervals(lengths), chance) for trait, chance in EXPECTED.items()}

    def record(self, group: Group) -> GroupStatistics:
        """What is known of `group`; it goes on learning."""
        record = self._records.get(group)
        if record is None:
            trait = self._traits[group.trait]
            record = self._records[group] = GroupStatistics(trait.lengths, above=trait)
        return record

    def forecast(self, record: GroupStatistics) -> ReuseForecast:
        """What one of `record`'s group may expect now."""
        found = self._forecasts.get(record)
        if found is None:
            found = self._forecasts[record] = record.forecast()
        return found

    def waits(self, key: Key, group: Group) -> None:
        """The prefix `key` begins to wait, as one of `group`."""
        self._forecasts.clear()
        self.record(group).begin()
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
            self._forecasts.clear()
            record = self.record(group)
            record.use()
            record.lengths.add(self.now - since)
            uses = self._uses.setdefault(key, PrefixUses())
            uses.count, uses.total = uses.count + 1, uses.total + self.now - since
            self._uses.move_to_end(key)
            if len(self._uses) > self.memory:
                self._uses.popitem(last=False)

    def uses(self, key: Key) -> PrefixUses | None:
        """Uses of the prefix so far, with a slot and without, if any are remembered."""
        return self._uses.get(key)

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
            self._forecasts.clear()
            self.record(group).withdraw()
