"""How often drafts are right, learnt as they are verified."""

from __future__ import annotations

from dataclasses import dataclass, field

UNKNOWN = 0.6
"""Taken for right before anything is known."""
WEIGHT = 1.0
"""Drafts of its own that a request must have had before they count as much as those of all requests."""


@dataclass(slots=True)
class Acceptance:
    """Rates by class: drafts of one class are about as likely to be right, if all before them in their row were.

    Attributes:
        memory: what a count is worth after the next one of its class; in (0, 1).
        prior: where rates come from while little is known.
        right, tried: counts by class, fading.
    """

    memory: float
    prior: Acceptance | None = None
    right: dict[int, float] = field(default_factory=dict)
    tried: dict[int, float] = field(default_factory=dict)

    def rate(self, kind: int) -> float:
        """How likely a draft of a class is right."""
        before = UNKNOWN if self.prior is None else self.prior.rate(kind)
        return (self.right.get(kind, 0.0) + WEIGHT * before) / (self.tried.get(kind, 0.0) + WEIGHT)

    def observe(self, kind: int, right: bool) -> None:
        """A draft of a class was verified, and all before it in its row were right."""
        self.right[kind] = self.memory * self.right.get(kind, 0.0) + right
        self.tried[kind] = self.memory * self.tried.get(kind, 0.0) + 1.0
        if self.prior is not None:
            self.prior.observe(kind, right)
