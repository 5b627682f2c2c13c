"""A recorded trace in Mooncake's format, as requests that caches can be fed with.

One JSON object a line: `timestamp` in ms, `input_length` and `output_length` in tokens, and `hash_ids`, an id for each
block of 512 tokens of the prompt (the last one may be short); equal ids stand for equal prefixes. The tokens themselves
are not in it, nor where messages begin, nor which part of the next turn is the last answer, so an answer is taken to be
seen by nobody again: no policy gains here by what it keeps after the prompt's end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from qwen36_neuron.apc.keys import Key
from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.errors import ConfigError

from .simulator import KeyedRequest
from .traces import Tokens

TRACE_BLOCK = 512
"""Tokens of a block of the trace."""

_ANSWERS = 1 << 40
"""Token ids from here on are those of answers, which are all different."""


@lru_cache(maxsize=4)
def _tokens(parts: tuple[range, ...]) -> Tokens:
    return tuple(chain.from_iterable(parts))


@dataclass(frozen=True, slots=True)
class RangedRequest:
    """A request whose tokens are made when they are asked for: all of a trace's at once would take gigabytes."""

    prompt_parts: tuple[range, ...]
    output_parts: tuple[range, ...]

    @property
    def prompt(self) -> Tokens:
        return _tokens(self.prompt_parts)

    @property
    def output(self) -> Tokens:
        return _tokens(self.output_parts)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One line of a trace.

    Attributes:
        seconds: of its arrival.
        blocks: the ids of its prompt's blocks.
    """

    seconds: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]

    @property
    def conversation(self) -> int:
        """What all turns of a conversation share: the second block, since the first may be common to the service."""
        return self.blocks[min(1, len(self.blocks) - 1)]


def read(path: Path) -> list[Recorded]:
    """The requests of a file, in order of arrival.

    Raises:
        ConfigError: there is no such file, or a line is not of the format; it is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("trace_file", path, f"cannot be read: {error}", "Give a trace of Mooncake's") from error
    found = [_parse(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigError("trace_file", path, "has no requests", "Give a trace of Mooncake's")
    return sorted(found, key=lambda one: one.seconds)


def _parse(path: Path, number: int, line: str) -> Recorded:
    try:
        row: dict[str, Any] = json.loads(line)
        one = Recorded(
            float(row["timestamp"]) / 1000,
            int(row["input_length"]),
            int(row["output_length"]),
            tuple(map(int, row["hash_ids"])),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise _malformed(path, number, f"{type(error).__name__}: {error}") from error
    if one.prompt_tokens < 1 or one.output_tokens < 0 or min(one.blocks, default=-1) < 0:
        raise _malformed(path, number, "a length or an id is out of range")
    if len(one.blocks) != -(-one.prompt_tokens // TRACE_BLOCK):
        raise _malformed(path, number, f"{len(one.blocks)} hash_ids for {one.prompt_tokens} tokens")
    return one


def _malformed(path: Path, number: int, why: str) -> ConfigError:
    return ConfigError("trace_file", f"{path}:{number}", f"is not a line of Mooncake's format: {why}", "Mend the line")


def one_in(recorded: Sequence[Recorded], count: int, part: int = 0) -> list[Recorded]:
    """What one of `count` replicas sees where conversations stay with their replica: whole ones, chosen by hash.

    Args:
        part: which replica, 0 .. count - 1.
    """
    return [one for one in recorded if _spread(one.conversation) % count == part]


def _spread(number: int) -> int:
    """Neighbouring ids far apart: Knuth's multiplicative hash, of 32 bits."""
    return (number * 2_654_435_761 % (1 << 32)) >> 8


def key(recorded: Sequence[Recorded], longest: int) -> tuple[list[KeyedRequest], int]:
    """Requests as a cache sees them, and how many were left out for being longer than `longest`, answer included."""
    keyed: list[KeyedRequest] = []
    seen: set[int] = set()
    next_answer, left_out = _ANSWERS, 0
    for one in recorded:
        output_tokens = max(one.output_tokens, 1)
        if one.prompt_tokens + output_tokens > longest:
            left_out += 1
            continue
        prompt = tuple(
            range(block * TRACE_BLOCK, block * TRACE_BLOCK + min(TRACE_BLOCK, one.prompt_tokens - TRACE_BLOCK * at))
            for at, block in enumerate(one.blocks)
        )
        answer = (range(next_answer, next_answer + output_tokens),)
        next_answer += output_tokens
        known = next((at for at, block in enumerate(one.blocks) if block not in seen), len(one.blocks))
        seen.update(one.blocks)
        keyed.append(
            KeyedRequest(
                RangedRequest(prompt, answer),
                _path(one, output_tokens, next_answer),
                min(known * TRACE_BLOCK, one.prompt_tokens - 1),
            )
        )
    return keyed, left_out


def _path(one: Recorded, output_tokens: int, answer: int) -> list[Key]:
    """Keys of all full blocks: those inside the prompt by the trace's ids, those with tokens of the answer its own."""
    inside = one.prompt_tokens // BLOCK_SIZE
    each = TRACE_BLOCK // BLOCK_SIZE
    path: list[Key] = [one.blocks[at // each] * each + at % each for at in range(inside)]
    # Negative, so that they are nobody else's: a key for each block's last token, of which answers have no two alike.
    total = (one.prompt_tokens + output_tokens - 1) // BLOCK_SIZE
    path += [-answer + at for at in range(total - inside)]
    return path
