"""Which checkpoints are expected to fare alike."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .boundaries import Kind


class Continued(Enum):
    """What is known of a checkpoint that has been used: how many different blocks were seen to follow it."""

    ONE_WAY = 1
    """The middle of one sequence, as the turns of a conversation are."""
    TWO_WAYS = 2
    MANY_WAYS = 3
    """A shared beginning."""


Trait = Kind | Continued


@dataclass(frozen=True, slots=True)
class Group:
    """Checkpoints that are expected to fare alike.

    Attributes:
        trait: why it was made while nobody has used it, how it was continued once somebody has.
        origin: for an unused one, the kind of checkpoint from which the request that made it went on, None if it
            started afresh: a later turn of a conversation is not like a question under a shared system prompt. For a
            used one, its own kind.
        quarter: for an unused one, how far into the new part of its prompt it lies, 1 .. 4: what follows a shared
            beginning is shared more often near it.
    """

    trait: Trait
    origin: Kind | None
    quarter: int = 0


def used_group(kind: Kind | None, ways: int) -> Group:
    """The group of a checkpoint of `kind` that has been used and was followed by `ways` different blocks."""
    return Group(Continued(min(max(ways, 1), Continued.MANY_WAYS.value)), kind)
