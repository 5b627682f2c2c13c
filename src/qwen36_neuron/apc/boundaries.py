"""Which block boundaries of a request are worth a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from ..config import BLOCK_SIZE
from .config import PolicyConfig


class Kind(Enum):
    """Why a boundary is kept."""

    NAMED = "named"
    """The client named it."""
    BRANCH = "branch"
    """Another request's KV matched up to here, and no checkpoint did."""
    PROMPT_END = "prompt_end"
    """The last full block of the prompt, or the one before it where only that one serves an exact repeat."""
    PREAMBLE = "preamble"
    """The end of the first message: a system prompt and its tools."""
    OPENING = "opening"
    """Text begins here that was seen to begin where sequences left each other: a shared document, say."""
    SPACED = "spaced"
    """Spaced over long text without marks, each at most half as deep again as the one before."""
    MESSAGE = "message"
    """The start or end of another message."""
    TURN_END = "turn_end"
    """Crossed while decoding. The last one stands for the end of the turn."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to keep of one request.

    Attributes:
        prompt: the boundaries inside the prompt, in tokens, ascending, and why each is kept.
        prompt_tokens: the length of the prompt. Boundaries after it are decoding's.
        restored: tokens of the checkpoint from which the request goes on, 0 if it starts afresh.
        origin: the kind of that checkpoint.
    """

    prompt: Mapping[int, Kind]
    prompt_tokens: int
    restored: int = 0
    origin: Kind | None = None

    def kind(self, boundary: int) -> Kind | None:
        """Why `boundary` is kept, or None where it is not."""
        return Kind.TURN_END if boundary > self.prompt_tokens else self.prompt.get(boundary)

    def quarter(self, boundary: int) -> int:
        """How far into the new part of the prompt `boundary` lies: 1 .. 4, and 4 while decoding."""
        new = max(self.prompt_tokens - self.restored, 1)
        return min(4, -(-4 * (boundary - self.restored) // new))


class BoundaryPlanner:
    """Plans one request at a time, from what is known when it is admitted."""

    def __init__(self, config: PolicyConfig) -> None:
        self.config = config

    def plan(
        self,
        prompt: Sequence[int],
        restored: int = 0,
        branch: int = 0,
        named: Iterable[int] = (),
        origin: Kind | None = None,
        openings: Iterable[int] = (),
    ) -> Plan:
        """Choose the boundaries of a request.

        Args:
            prompt: token ids of the prompt.
            restored: tokens whose state is reused, a multiple of BLOCK_SIZE. Nothing is kept up to there.
            branch: tokens up to which KV of an earlier request matched; 0 if no further than `restored`.
            named: lengths in tokens of the prefixes that the client wants kept. Rounded down to blocks; those outside
                the prompt are ignored.
            origin: kind of the checkpoint that is restored, if one is.
            openings: tokens before which text begins that other requests began with after some shared prefix.

        Returns:
            A plan with at most `prompt_cap` boundaries in (restored, len(prompt)].
        """
        chosen: dict[int, Kind] = {}
        for boundary, kind in self._candidates(prompt, restored, branch, named, openings):
            if len(chosen) == self.config.prompt_cap:
                break
            if restored < boundary <= len(prompt):
                chosen.setdefault(boundary, kind)
        return Plan(MappingProxyType(dict(sorted(chosen.items()))), len(prompt), restored, origin)

    def _candidates(
        self, prompt: Sequence[int], restored: int, branch: int, named: Iterable[int], openings: Iterable[int]
    ) -> Iterator[tuple[int, Kind]]:
        """Boundaries in the order in which they deserve a slot."""
        end = len(prompt)
        messages = self._messages(prompt, restored)
        opened = [_floor(tokens) for tokens in openings]
        marked = {_floor(end), _floor(end - 1), _floor(branch), *messages[:1], *messages[-2:], *opened}
        yield from ((_floor(length), Kind.NAMED) for length in named)
        yield _floor(branch), Kind.BRANCH
        yield _floor(end), Kind.PROMPT_END
        yield _floor(end - 1), Kind.PROMPT_END
        if restored == 0:
            yield from ((boundary, Kind.PREAMBLE) for boundary in messages[:1])
        yield from ((boundary, Kind.MESSAGE) for boundary in messages[-2:])
        yield from ((boundary, Kind.OPENING) for boundary in opened)
        for boundary in reversed(list(_spaced(restored, end, marked, messages))):
            yield boundary, Kind.MESSAGE if boundary in messages else Kind.SPACED
        yield from ((boundary, Kind.MESSAGE) for boundary in reversed(messages))

    def _messages(self, prompt: Sequence[int], restored: int) -> list[int]:
        """Boundaries at or just before the place where one message ends and another may start, ascending."""
        found: set[int] = set()
        for tokens, after in ((self.config.message_starts, 0), (self.config.message_ends, 1)):
            for token in tokens:
                found.update(_floor(index + after) for index in _places(prompt, token, restored))
        return sorted(boundary for boundary in found if boundary > restored)


def _places(prompt: Sequence[int], token: int, start: int) -> Iterator[int]:
    """Where `token` stands from `start` on. A list finds it far faster than a loop over its items could."""
    index = start - 1
    with suppress(ValueError):
        while True:
            index = prompt.index(token, index + 1)
            yield index


def _floor(tokens: int) -> int:
    return max(tokens, 0) // BLOCK_SIZE * BLOCK_SIZE


def _spaced(restored: int, end: int, marked: Iterable[int], messages: Sequence[int]) -> Iterator[int]:
    """Boundaries that, with `marked`, make each at most half as deep again as the one before it.

    So a later request that leaves this one anywhere after the first block finds a checkpoint at half of the shared
    prefix or deeper: at two thirds, but for what rounding to blocks takes from short ones. Ends of messages are taken
    where they do as well as any other place.
    """
    last = restored
    for mark in sorted({boundary for boundary in marked if restored < boundary <= end}):
        while mark > (furthest := max(_floor(last + last // 2), last + BLOCK_SIZE)):
            last = max((boundary for boundary in messages if last < boundary <= furthest), default=furthest)
            yield last
        last = mark
