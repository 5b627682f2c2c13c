"""Steps of random but reproducible traffic that obey the contract, as a scheduler would give them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.runtime import Capacity, Commit, Output, Row, Step

MAX_NEW = 24


@dataclass(slots=True)
class Sequence:
    """One running request."""

    name: str
    lane: int
    prompt: list[int]
    blocks: list[int]
    start: int = 0
    restore: int | None = None
    left: int = MAX_NEW


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A slot that holds the state after `tokens`, whose KV is in `blocks`; both are kept."""

    tokens: list[int]
    blocks: list[int]


@dataclass(slots=True)
class Traffic:
    """Prompts of 1 to 440 tokens in chunks of any length, prefixes reused, decode rows, idle lanes, ends.

    After every step `advance` must be told the tokens to go on with.
    """

    capacity: Capacity
    seed: int = 0
    running: dict[int, Sequence] = field(default_factory=dict)
    kept: dict[int, Checkpoint] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    released: list[int] = field(default_factory=list)
    taken: set[int] = field(default_factory=set)
    random: random.Random = field(init=False)
    number: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def steps(self, count: int) -> Iterator[Step]:
        for _ in range(count):
            if len(self.running) < self.capacity.num_lanes and self.random.random() < 0.35:
                self._admit()
            rows = [row for row in map(self._row, self.running.values()) if row is not None]
            self.random.shuffle(rows)
            yield Step(tuple(rows), tuple(self.released))
            self.released.clear()
            self.taken.clear()

    def advance(self, step: Step, following: dict[int, int]) -> None:
        """`following` is the next token by lane."""
        for row in step.rows:
            sequence = self.running[row.lane]
            sequence.start, sequence.restore = row.end, None
            for commit in row.commits:
                self.kept[commit.slot] = Checkpoint(
                    sequence.prompt[: commit.boundary], sequence.blocks[: commit.boundary // BLOCK_SIZE]
                )
            if row.end == len(sequence.prompt):
                sequence.prompt.append(following[row.lane])
                sequence.left -= 1
                if not sequence.left or len(sequence.prompt) == self.capacity.max_model_len:
                    self._end(sequence)

    def _admit(self) -> None:
        lane = next(lane for lane in range(1, self.capacity.num_lanes + 1) if lane not in self.running)
        slot = self.random.choice([None, *self.kept])
        prefix = self.kept[slot] if slot is not None else Checkpoint([], [])
        most = 440 - len(prefix.tokens)
        suffix = self.random.choice([1, 2, 63, 64, 65, self.random.randint(1, most)])
        total = -(-(len(prefix.tokens) + suffix + MAX_NEW) // BLOCK_SIZE)
        needed = total - len(prefix.blocks)
        holders = [*self.running.values(), *self.kept.values()]
        free = sorted(set(range(1, self.capacity.num_blocks)).difference(*(holder.blocks for holder in holders)))
        if needed > len(free):
            return
        own = self.random.sample(free, needed)
        self.number += 1
        self.running[lane] = Sequence(
            name=f"request {self.number}",
            lane=lane,
            prompt=prefix.tokens + [self.random.randrange(4000) for _ in range(suffix)],
            blocks=prefix.blocks + own,
            start=len(prefix.tokens),
            restore=slot,
        )
        self._count("restores" if slot is not None else "fresh")

    def _row(self, sequence: Sequence) -> Row | None:
        remaining = len(sequence.prompt) - sequence.start
        if remaining == 1 and self.random.random() < 0.2:
            return None  # idle this step, as when the scheduler is out of budget
        count = min(remaining, self.random.choice([1, 37, 100, 128, 300]))
        end = sequence.start + count
        commits = []
        boundary = end // BLOCK_SIZE * BLOCK_SIZE
        slot = self.random.randint(1, self.capacity.num_slots)
        restoring = {other.restore for other in self.running.values()}
        if boundary > sequence.start and slot not in restoring | self.taken and self.random.random() < 0.8:
            commits.append(Commit(boundary, slot))
            self.taken.add(slot)
            self._count("commits")
        self._count("prefill rows" if count > 1 else "decode rows")
        return Row(
            sequence.name,
            sequence.lane,
            sequence.prompt[sequence.start : end],
            sequence.start,
            tuple(sequence.blocks),
            restore=sequence.restore,
            commits=tuple(commits),
            output=Output.LOGITS,
        )

    def _end(self, sequence: Sequence) -> None:
        del self.running[sequence.lane]
        self.released.append(sequence.lane)
        self._count("ends")

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
