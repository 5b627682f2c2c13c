"""What became of the checkpoints of one group, and what that says of those that wait now."""

from __future__ import annotations

import math
from dataclasses import dataclass

FADE = 128
"""Observations after which all that is known counts half, so that a changed load is learned anew."""
WAIT = 4.0
"""Requests from one use to the next before anything was learned; counts as WAIT_WEIGHT observations, as does what all
traits know for one of them."""
WAIT_WEIGHT = 4
TIMELESS = 0.25
"""Weight of the view that a wait has no typical length."""
CERTAIN = 0.98
"""The most that is believed of a checkpoint's chance, so that age can always refute it."""


@dataclass(slots=True, eq=False)
class ReuseIntervals:
    """Intervals that ended in a use: how many, and the sum of their lengths in requests."""

    above: ReuseIntervals | None = None
    count: float = 0.0
    total: float = 0.0

    def add(self, length: int) -> None:
        """One more, here and above."""
        if self.count >= FADE:
            self.count, self.total = self.count / 2, self.total / 2
        self.count, self.total = self.count + 1, self.total + length
        if self.above is not None:
            self.above.add(length)

    @property
    def mean(self) -> float:
        """The mean length, leaning on the one above."""
        prior = WAIT if self.above is None else self.above.mean
        return (self.total + prior * WAIT_WEIGHT) / (self.count + WAIT_WEIGHT)


@dataclass(slots=True, eq=False)
class PrefixUses:
    """Uses of one prefix: how many, and the sum of the waits before them in requests."""

    count: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class ReuseForecast:
    """What a record says at one time.

    Attributes:
        chance: that a checkpoint is used again.
        mean: length of a wait in requests, at least 1.
    """

    chance: float
    mean: float

    def rate(self, age: int) -> float:
        """Chance that the next request uses one that has not been used for `age` requests.

        Two views of a wait are mixed. For most of the weight it is of one of two sorts: it never ends, or it has the
        mean length of its trait and no memory of how long it has lasted; the longer it lasts, the likelier it is of
        the first sort. The rest of the weight knows no typical length, so that what was in use is not lost in a long
        stretch of other requests:

            still = p * exp(-age / mean)
            rate = 3/4 * still / (still + 1 - p) / mean + 1/4 * p / (WAIT + age)
        """
        bounded = min(self.chance, CERTAIN)
        still = bounded * math.exp(-age / self.mean)
        typical = still / (still + 1 - bounded) / self.mean
        return (1 - TIMELESS) * typical + TIMELESS * self.chance / (WAIT + age)

    def shared_rate(self, age: int, own: PrefixUses) -> float:
        """The same for a shared beginning, whose own uses say more than its group's: they take the place of `typical`.

        rate = 3/4 * frequency + 1/4 * p / (WAIT + age)
        """
        return (1 - TIMELESS) * self.frequency(age, own) + TIMELESS * self.chance / (WAIT + age)

    def frequency(self, age: int, own: PrefixUses) -> float:
        """Uses a request of a prefix not used for `age` requests, leaning on the group as on one more use and wait."""
        return (own.count + self.chance) / (own.total + age + self.mean)


@dataclass(slots=True, eq=False)
class GroupStatistics:
    """Checkpoints that waited to be used and those that were, of a trait or, with that `above`, of a group of it.

    Attributes:
        lengths: of its trait's waits.
        expected: a trait's chance before anything was learned; it counts as one observation.
    """

    lengths: ReuseIntervals
    expected: float = 0.0
    above: GroupStatistics | None = None
    waits: float = 0.0
    uses: float = 0.0

    def begin(self) -> None:
        """One more waits, here and above."""
        self.waits += 1
        if self.waits > FADE:
            self.waits, self.uses = self.waits / 2, self.uses / 2
        if self.above is not None:
            self.above.begin()

    def use(self) -> None:
        """One was used, here and above."""
        self.uses += 1
        if self.above is not None:
            self.above.use()

    def withdraw(self) -> None:
        """One that began to wait shall not count, here and above."""
        self.waits = max(self.waits - 1, 0.0)
        if self.above is not None:
            self.above.withdraw()

    @property
    def chance(self) -> float:
        """Chance that one is used again, leaning on the chance above."""
        prior = self.expected if self.above is None else self.above.chance
        return (self.uses + prior) / (self.waits + 1)

    def forecast(self) -> ReuseForecast:
        """What it says now."""
        return ReuseForecast(self.chance, max(self.lengths.mean, 1.0))
