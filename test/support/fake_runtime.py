"""A runtime without a network, whose every token depends on all the memory that a real one would read.

Each KV position holds a digest of the tokens up to it, each lane and each slot a digest of the tokens it has seen, and
the next token is a digest of both. A block, lane or slot that is stale, shared by mistake or not yet written therefore
gives another token than `expected_tokens` says. Reads of a step are checked against its writes: rows may run in any
order on a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.runtime import (
    Capacity,
    Output,
    Row,
    RowResult,
    RuntimeConfig,
    Step,
    StepChecker,
    StepError,
    StepResult,
)
from qwen36_neuron.runtime.choose import choose

VOCAB = 512
_SEED = 0x9E3779B97F4A7C15
_MASK = (1 << 63) - 1


def _mix(state: int, value: int) -> int:
    state = (state ^ (value + 0x7F4A7C15)) * 0x5851F42D4C957F2D & _MASK
    return state ^ (state >> 29)


def digest(tokens: Sequence[int], state: int = _SEED & _MASK) -> int:
    """Digest of `tokens` after a prefix with digest `state`."""
    for token in tokens:
        state = _mix(state, token)
    return state


def logits_of(lane: int, kv: int) -> torch.Tensor:
    """fp32 [VOCAB], well spread, from the lane's digest and that of all KV positions."""
    generator = np.random.default_rng(_mix(lane, kv))
    return torch.from_numpy(generator.normal(size=VOCAB).astype(np.float32) * 4)


def expected_logits(tokens: Sequence[int]) -> torch.Tensor:
    """What the runtime must give after `tokens`, computed from the tokens alone."""
    states, state = [], digest(())
    for token in tokens:
        state = _mix(state, token)
        states.append(state)
    return logits_of(state, _fold(np.array(states, dtype=np.int64)))


def expected_tokens(prompt: Sequence[int], count: int) -> list[int]:
    """Greedy continuation of `prompt`."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(expected_logits(tokens).argmax()))
    return tokens[len(prompt) :]


def _fold(kv: np.ndarray) -> int:
    weights = np.arange(1, len(kv) + 1, dtype=np.int64) * 2 + 1
    with np.errstate(over="ignore"):
        return int((kv * weights).sum()) & _MASK


@dataclass
class FakeRuntime:
    """Keeps the step contract. `steps` records what was run; `fail_next` refuses the next step."""

    config: RuntimeConfig
    steps: list[Step] = field(default_factory=list)
    fail_next: Exception | None = None
    closed: bool = False

    def __post_init__(self) -> None:
        c = self.config
        self._capacity = Capacity(
            c.num_blocks, c.num_lanes, c.num_slots, c.max_model_len, c.max_step_tokens, c.sampling_candidates or 0
        )
        self.checker = StepChecker(self._capacity, VOCAB)
        self.kv = np.zeros((c.num_blocks, BLOCK_SIZE), dtype=np.int64)
        self.lanes = [0] * (c.num_lanes + 1)
        self.slots = [0] * (c.num_slots + 1)

    @property
    def capacity(self) -> Capacity:
        return self._capacity

    @property
    def vocab_size(self) -> int:
        return VOCAB

    def warm_up(self) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        self.closed = True

    def run(self, step: Step) -> StepResult:
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        self.checker.check(step)
        self._check_blocks(step)
        self.steps.append(step)
        for lane in step.released_lanes:
            self.lanes[lane] = -1
        for row in step.rows:
            if row.restore is not None:
                self.lanes[row.lane] = self.slots[row.restore]
            elif row.start == 0:
                self.lanes[row.lane] = digest(())
        results = tuple(self._run_row(row) for row in step.rows)
        self.checker.apply(step)
        return StepResult(results)

    def _check_blocks(self, step: Step) -> None:
        """A block that a row writes is in no other row of the step."""
        writers: dict[int, str] = {}
        for row in step.rows:
            for block in row.blocks[row.start // BLOCK_SIZE : -(-row.end // BLOCK_SIZE)]:
                if block in writers:
                    raise StepError(f"block {block} is written by {writers[block]} and {row.request_id}")
                writers[block] = row.request_id
        for row in step.rows:
            for block in row.blocks[: -(-row.end // BLOCK_SIZE)]:
                if writers.get(block, row.request_id) != row.request_id:
                    raise StepError(f"block {block} is written by {writers[block]} and read by {row.request_id}")

    def _run_row(self, row: Row) -> RowResult:
        state = self.lanes[row.lane]
        commits = {commit.boundary: commit.slot for commit in row.commits}
        every: list[torch.Tensor] = []
        for position, token in enumerate(row.tokens, start=row.start):
            state = _mix(state, token)
            self.kv[row.blocks[position // BLOCK_SIZE], position % BLOCK_SIZE] = state
            if position + 1 in commits:
                self.slots[commits[position + 1]] = state
            if row.output is Output.ALL_LOGITS:
                every.append(logits_of(state, self._kv_digest(row, position + 1)))
        self.lanes[row.lane] = state
        if row.output is Output.NOTHING:
            return RowResult()
        if row.output is Output.ALL_LOGITS:
            return RowResult(logits=torch.stack(every))
        logits = logits_of(state, self._kv_digest(row, row.end))
        if row.output is Output.TOKEN:
            return RowResult(tokens=(choose(row, logits[None]),))
        return RowResult(logits=logits[None])

    def _kv_digest(self, row: Row, length: int) -> int:
        blocks = list(row.blocks[: -(-length // BLOCK_SIZE)])
        return _fold(self.kv[blocks].reshape(-1)[:length])
