"""Drafts out of a request's own tokens: what followed the last time that its text was as it is now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

LONGEST = 32
"""Tokens of a match that are counted: longer ones are not more certain."""
TRIED = 32
"""Earlier places that are compared, the latest ones."""


@dataclass(slots=True)
class TokenHistory:
    """The tokens of one request in one array that grows.

    Attributes:
        buffer: int32, `count` of them in use.
    """

    buffer: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(256, np.int32))
    count: int = 0

    def follow(self, prompt: Sequence[int], output: Sequence[int]) -> npt.NDArray[np.int32]:
        """Take in what has come since the last call; all tokens, int32 [prompt + output]."""
        total, split = len(prompt) + len(output), len(prompt)
        if self.count > total:
            self.count = 0
        if total > len(self.buffer):
            grown = np.empty(max(total, 2 * len(self.buffer)), np.int32)
            grown[: self.count] = self.buffer[: self.count]
            self.buffer = grown
        if self.count < split:
            self.buffer[self.count : split] = prompt[self.count :]
            self.count = split
        self.buffer[self.count : total] = output[self.count - split :]
        self.count = total
        return self.buffer[:total]


@dataclass(frozen=True, slots=True)
class Match:
    """What was found.

    Attributes:
        length: tokens before the end that are the same as before the earlier place, LONGEST at most.
        drafts: the tokens that followed there.
    """

    length: int
    drafts: tuple[int, ...]


def look_up(tokens: npt.NDArray[np.int32], least: int, most: int) -> Match | None:
    """The longest match of the text's end with an earlier place, the latest of equals.

    Where what followed reaches the end of the text, it goes on with itself, so that a text that repeats is continued.

    Args:
        tokens: int32 [count].
        least: tokens that must be the same.
        most: drafts wanted.
    Returns:
        None if fewer than `least` tokens are found again.
    """
    count = len(tokens)
    if most < 1 or count <= least:
        return None
    end = tokens[count - least :]
    found = np.flatnonzero(tokens[: count - least] == end[0])
    for offset in range(1, least):
        found = found[tokens[found + offset] == end[offset]]
    length, place = 0, 0
    for start in found[: -TRIED - 1 : -1].tolist():
        same = _same(tokens, start + least, count)
        if same > length:
            length, place = same, start + least
        if length == LONGEST:
            break
    if not length:
        return None
    drafts = tokens[place : place + most].tolist()
    while len(drafts) < most:
        drafts.append(drafts[len(drafts) - (count - place)])
    return Match(length, tuple(drafts))


def _same(tokens: npt.NDArray[np.int32], place: int, count: int) -> int:
    """How many tokens before `place` are those before `count`, LONGEST at most."""
    most = min(LONGEST, place)
    differ = np.flatnonzero(tokens[place - most : place] != tokens[count - most : count])
    return most if not len(differ) else most - 1 - int(differ[-1])
