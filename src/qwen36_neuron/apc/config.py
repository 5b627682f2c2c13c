"""What the checkpoint policy is told, once, at start."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """Settings of the policy.

    Attributes:
        num_slots: checkpoint slots; 0 keeps nothing.
        message_starts: ids of the tokens that open a message in the chat template, as `<|im_start|>`.
        message_ends: ids of the tokens that close one, as `<|im_end|>`.
        slots_per_prompt: the most checkpoints that one prompt may ask for, however many slots there are; its decoding
            adds one more.
    """

    num_slots: int
    message_starts: frozenset[int] = frozenset()
    message_ends: frozenset[int] = frozenset()
    slots_per_prompt: int = 16

    def __post_init__(self) -> None:
        if self.num_slots < 0:
            raise ConfigError("num_slots", self.num_slots, "must not be negative", "Give 0 to keep no checkpoints")
        if self.slots_per_prompt < 1:
            raise ConfigError(
                "slots_per_prompt", self.slots_per_prompt, "must be at least 1", "Turn prefix caching off to keep none"
            )
        both = self.message_starts & self.message_ends
        if both:
            raise ConfigError("message_ends", sorted(both), "also open a message", "Name each token once")

    @property
    def prompt_cap(self) -> int:
        """The most checkpoints a prompt may ask for: a quarter of the slots, since others run in its step too."""
        return min(self.slots_per_prompt, max(2, self.num_slots // 4), self.num_slots)
