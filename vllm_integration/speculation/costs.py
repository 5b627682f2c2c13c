"""What steps cost, learnt from those that ran: it decides how many drafts pay."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.runtime import DraftRequest, Row, Runtime, Step

SLOWER, FASTER = 0.1, 0.3
"""Weights of one more measurement: what disturbs one makes it slower."""
OUTLIER = 4.0
"""A measurement so many times what is known says something of the machine, not of the step."""
REPEATED = 3
RELAX = 0.01
"""How far costs of drafts go back to what they were at first in a step that has none."""


@dataclass(slots=True)
class Rate:
    """One cost in seconds by number of rows, in classes of powers of two.

    Attributes:
        known: what it is taken for now; first: the first measurement.
    """

    known: dict[int, float] = field(default_factory=dict)
    first: dict[int, float] = field(default_factory=dict)

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
            self.known[size] = self.first[size] = seconds
        else:
            weight = SLOWER if seconds > before else FASTER
            self.known[size] = before + weight * (min(seconds, OUTLIER * before) - before)

    def of_first(self, rows: int) -> float:
        """The cost at so many rows now, of what it was at first; 1 at most, and where nothing is known."""
        size = rows.bit_length()
        return min(1.0, self.known[size] / self.first[size]) if self.first.get(size) else 1.0

    def relax(self, share: float = 1.0) -> None:
        """Forget a little of what made it dearer than a share of what it was at first."""
        for size, seconds in self.known.items():
            self.known[size] = seconds + RELAX * min(0.0, share * self.first[size] - seconds)


@dataclass(slots=True)
class StepCosts:
    """Seconds.

    Attributes:
        plain: a step of one token a row.
        verify: what a step takes more in which any row has drafts, beside their positions.
        position: what every further position of a step takes, a draft to be verified.
        draft: what one more draft of each row takes, made by the model's draft layer.
        catch_up: what the draft layer takes for each token that it has not seen, by how many there are.
        between: from one step to the next, in the engine.
    """

    plain: Rate = field(default_factory=Rate)
    verify: Rate = field(default_factory=Rate)
    position: Rate = field(default_factory=Rate)
    draft: Rate = field(default_factory=Rate)
    catch_up: Rate = field(default_factory=Rate)
    between: Rate = field(default_factory=Rate)

    def learn(self, rows: int, seconds: Mapping[int, float]) -> None:
        """Steps of so many rows took so long, by the drafts that each row had: none, one, as many as there may be."""
        plain, most = seconds.get(0), max(seconds, default=0)
        if plain is None:
            return
        self.plain.observe(rows, plain)
        if most:
            one = seconds.get(1, seconds[most] / most)
            each = (seconds[most] - one) / (most - 1) if most > 1 else one - plain
            self.position.observe(rows, each / rows)
            self.verify.observe(rows, one - plain - each)

    def drafted(self, rows: int, count: int, unseen: int, seconds: float) -> None:
        """So many drafts of each of so many rows were made, after the layer had seen `unseen` tokens in between."""
        if unseen:
            self.catch_up.observe(unseen, (seconds - count * self.draft.of(rows)) / unseen)
        else:
            self.draft.observe(rows, seconds / count)

    def ran(self, rows: int, drafts: int, seconds: float) -> None:
        """A step of decoding rows alone has run, with so many drafts among them.

        What made drafts dear may have passed, as when other programs kept the machine busy; nothing would tell where
        none are made any more. So their costs fade to what they were at first, and drafts are tried again. Where the
        machine was busy at first, steps without drafts are faster now: all was measured in one go, so costs fade to
        as much less.
        """
        if drafts:
            self.position.observe(rows, (seconds - self.plain.of(rows) - self.verify.of(rows)) / drafts)
        else:
            self.plain.observe(rows, seconds)
            share = self.plain.of_first(rows)
            for rate in (self.verify, self.position, self.draft, self.catch_up):
                rate.relax(share)


def measure(runtime: Runtime, costs: StepCosts, most: int, made: int) -> None:
    """Learn what steps cost before the first request, on lanes and blocks that nobody owns yet.

    Args:
        most: drafts that a row may have; made: by the draft layer, 0 where it makes none.
    """
    capacity = runtime.capacity
    blocks = (capacity.num_blocks - 1) // 2
    length = min(BLOCK_SIZE, capacity.max_step_tokens, capacity.max_model_len - (1 + most) * (1 + 3 * REPEATED))
    if blocks < 1 or length < 1:
        return
    for lanes in sorted({1, min(capacity.num_lanes, blocks, capacity.max_step_tokens // (1 + most))}):
        if lanes >= 1:
            _measure(runtime, costs, most, made, lanes, length)


def _measure(runtime: Runtime, costs: StepCosts, most: int, made: int, lanes: int, length: int) -> None:
    tables = [(2 * lane - 1, 2 * lane) for lane in range(1, lanes + 1)]
    held = length
    for lane in range(1, lanes + 1):
        runtime.run(Step((Row("measure", lane, [0] * length, 0, tables[lane - 1]),)))
    least: dict[int, float] = {}
    for drafts in sorted({0, 1, most}):
        taken = []
        for turn in range(1 + REPEATED):
            if held + 1 + drafts > 2 * BLOCK_SIZE:
                break
            started = time.perf_counter()
            runtime.run(Step(_rows(tables, held, drafts)))
            held += 1
            if turn:  # the first one makes buffers
                taken.append(time.perf_counter() - started)
            if made:
                _measure_drafting(runtime, costs, made, tables, counts=turn > 0)
        if taken:
            least[drafts] = min(taken)
    costs.learn(lanes, least)
    runtime.run(Step((), released_lanes=tuple(range(1, lanes + 1))))


def _measure_drafting(
    runtime: Runtime, costs: StepCosts, made: int, tables: Sequence[tuple[int, int]], *, counts: bool
) -> None:
    started = time.perf_counter()
    runtime.draft([DraftRequest("measure", lane, (0,), table, made) for lane, table in enumerate(tables, start=1)])
    if counts:
        costs.drafted(len(tables), made, 0, time.perf_counter() - started)


def _rows(tables: Sequence[tuple[int, int]], start: int, drafts: int) -> tuple[Row, ...]:
    return tuple(
        Row("measure", lane, [0], start, table, drafts=(0,) * drafts) for lane, table in enumerate(tables, start=1)
    )
