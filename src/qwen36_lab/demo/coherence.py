"""Whether a text has fallen into a loop."""

from __future__ import annotations

REPEATS = 4
"""A unit that fills the end of a text so many times is a loop."""
LOOPED_CHARACTERS = 40
"""Shorter repetition ("ha ha ha ha") is speech."""


def loops(text: str) -> bool:
    """Whether the text ends in one unit repeated REPEATS times or more, over LOOPED_CHARACTERS or more."""
    text = text.rstrip()
    for unit in range(1, len(text) // REPEATS + 1):
        span = max(unit * REPEATS, LOOPED_CHARACTERS + unit)
        if span <= len(text) and text[-span:-unit] == text[len(text) - span + unit :]:
            return True
    return False
