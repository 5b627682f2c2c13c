"""What steps cost, learnt from those that ran: it decides how many drafts pay."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.runtime import Row, Runtime, Step

NEW = 0.1
"""Weight of one more measurement."""
OUTLIER = 4.0
"""A measurement so many times what is known says something of the machine, not of the step."""
REPEATED = 3


@dataclass(slots=True)
class Rate:
    """One cost in seconds by number of rows, in classes of powers of two."""

    known: dict[int, float] = field(default_factory=dict)

    def of(self, rows: int) -> float:
        """The cost at so many rows, of the nearest class that is known; 0 before any is."""
        if not self.known:
            return 0.0
        wanted = rows.bit_length()
        return self.known[min(self.known, key=lambda size: (abs(size - wanted), size))]

    def observe(self, rows: int, seconds: float) -> None:
        """One more measurement."""
        size, seconds = rows.bit_length(), max(seconds, 0.0)
        before = self.known.get(size)
        if before is None or not before:
            self.known[size] = seconds
        else:
            self.known[size] = before + NEW * (min(seconds, OUTLIER * before) - before)


@dataclass(slots=True)
class StepCosts:
    """Seconds.

    Attributes:
        plain: a step of one token a row.
        position: what every further position of a step takes, a draft to be verified.
        draft: what one more draft of each row takes, made by the model's draft layer.
        between: from one step to the next, in the engine.
    """

    plain: Rate = field(default_factory=Rate)
    position: Rate = field(default_factory=Rate)
    draft: Rate = field(default_factory=Rate)
    between: Rate = field(default_factory=Rate)

    @contextmanager
    def drafting(self, rows: int, count: int) -> Iterator[None]:
        """Around the call that makes `count` drafts of each of so many rows."""
        started = time.perf_counter()
        yield
        self.draft.observe(rows, (time.perf_counter() - started) / count)

    def ran(self, rows: int, drafts: int, seconds: float) -> None:
        """A step of decoding rows alone has run, with so many drafts among them."""
        if drafts:
            self.position.observe(rows, (seconds - self.plain.of(rows)) / drafts)
        else:
            self.plain.observe(rows, seconds)


def measure(runtime: Runtime, costs: StepCosts, most: int) -> None:
    """Learn what steps cost before the first request, on lanes and blocks that nobody owns yet."""
    capacity = runtime.capacity
    blocks = (capacity.num_blocks - 1) // 2
    length = min(BLOCK_SIZE, capacity.max_step_tokens, capacity.max_model_len - (1 + most) * (1 + 3 * REPEATED))
    if blocks < 1 or length < 1:
        return
    for lanes in sorted({1, min(capacity.num_lanes, blocks, capacity.max_step_tokens // (1 + most))}):
        if lanes >= 1:
            _measure(runtime, costs, most, lanes, length)


def _measure(runtime: Runtime, costs: StepCosts, most: int, lanes: int, length: int) -> None:
    tables = [(2 * lane - 1, 2 * lane) for lane in range(1, lanes + 1)]
    reach = 2 * BLOCK_SIZE
    held = length
    for lane in range(1, lanes + 1):
        runtime.run(Step((Row("measure", lane, [0] * length, 0, tables[lane - 1]),)))
    for drafts in (0, most):
        for turn in range(1 + REPEATED):
            if held + 1 + drafts > reach:
                break
            seconds = _timed(runtime, _rows(tables, held, drafts))
            held += 1
            if turn:  # the first one makes buffers
                costs.ran(lanes, drafts * lanes, seconds)
    runtime.run(Step((), released_lanes=tuple(range(1, lanes + 1))))


def _rows(tables: Sequence[tuple[int, int]], start: int, drafts: int) -> tuple[Row, ...]:
    return tuple(
        Row("measure", lane, [0], start, table, drafts=(0,) * drafts) for lane, table in enumerate(tables, start=1)
    )


def _timed(runtime: Runtime, rows: tuple[Row, ...]) -> float:
    started = time.perf_counter()
    runtime.run(Step(rows))
    return time.perf_counter() - started
