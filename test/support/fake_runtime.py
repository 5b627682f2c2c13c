"""A runtime without a network, whose every token depends on all the memory that a real one would read.

Each KV position holds a digest of the tokens up to it, each lane and each slot a digest of the tokens it has seen, and
the next token is a digest of both. A block, lane or slot that is stale, shared by mistake or not yet written therefore
gives another token than `expected_tokens` says. Reads of a step are checked against its writes: rows may run in any
order on a device.

A lane's digest is of certain tokens alone: it takes drafts in when the row that follows says how many were right.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.runtime import (
    Capacity,
    DraftRequest,
    Output,
    Row,
    RowResult,
    RuntimeConfig,
    Step,
    StepChecker,
    StepError,
    StepResult,
)
from qwen36_neuron.runtime.choose import choose_tokens, verified

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
    """Keeps the step contract. `steps` records what was run; `fail_next` refuses the next step.

    Its draft layer proposes what will come, with a mistake in one of `mistakes` drafts: 1 for wrong ones alone, 0 for
    right ones alone.
    """

    config: RuntimeConfig
    mistakes: int = 3
    steps: list[Step] = field(default_factory=list)
    fail_next: Exception | None = None
    closed: bool = False

    def __post_init__(self) -> None:
        c = self.config
        self._capacity = Capacity(
            c.num_blocks,
            c.num_lanes,
            c.num_slots,
            c.max_model_len,
            c.max_step_tokens,
            c.sampling_candidates or 0,
            c.max_drafts,
            c.max_proposals,
        )
        self.drafts: dict[int, tuple[int, ...]] = {}
        self.chance = random.Random(0)
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
        written = [commit.slot for row in step.rows for commit in row.commits]
        assert len(written) == len(set(written))
        results = tuple(self._run_row(row) for row in step.rows)
        self.checker.apply(step)
        return StepResult(results)

    def _check_blocks(self, step: Step) -> None:
        """A block that a row writes is in no other row of the step."""
        writers: dict[int, str] = {}
        for row in step.rows:
            for block in row.blocks[row.start // BLOCK_SIZE : -(-row.reach // BLOCK_SIZE)]:
                if block in writers:
                    raise StepError(f"block {block} is written by {writers[block]} and {row.request_id}")
                writers[block] = row.request_id
        for row in step.rows:
            for block in row.blocks[: -(-row.reach // BLOCK_SIZE)]:
                if writers.get(block, row.request_id) != row.request_id:
                    raise StepError(f"block {block} is written by {writers[block]} and read by {row.request_id}")

    def _run_row(self, row: Row) -> RowResult:
        state = self.lanes[row.lane]
        accepted = self.drafts.get(row.lane, ())[: self.checker.accepted(row)]
        commits = {commit.boundary: commit.slot for commit in row.commits}
        every: list[torch.Tensor] = []
        first = row.start - len(accepted)
        for position, token in enumerate((*accepted, *row.tokens), start=first):
            state = _mix(state, token)
            if position >= row.start:
                self.kv[row.blocks[position // BLOCK_SIZE], position % BLOCK_SIZE] = state
            if position + 1 in commits:
                self.slots[commits[position + 1]] = state
            if row.output is Output.ALL_LOGITS:
                every.append(logits_of(state, self._kv_digest(row, position + 1)))
        self.lanes[row.lane] = state
        self.drafts[row.lane] = tuple(row.drafts)
        if row.output is Output.NOTHING:
            return RowResult()
        if row.output is Output.ALL_LOGITS:
            return RowResult(logits=torch.stack(every))
        rows = [logits_of(state, self._kv_digest(row, row.end))]
        for position, token in enumerate(row.drafts, start=row.end):
            state = _mix(state, token)
            self.kv[row.blocks[position // BLOCK_SIZE], position % BLOCK_SIZE] = state
            rows.append(logits_of(state, self._kv_digest(row, position + 1)))
        logits = torch.stack(rows)
        if row.output is Output.TOKEN:
            return RowResult(tokens=verified(row.drafts, choose_tokens([row], [len(logits)], logits)))
        return RowResult(logits=logits)

    def draft(self, requests: Sequence[DraftRequest]) -> tuple[tuple[int, ...], ...]:
        return tuple(self._draft(request) for request in requests)

    def _draft(self, request: DraftRequest) -> tuple[int, ...]:
        *accepted, _ = request.tokens
        assert tuple(accepted) == self.drafts[request.lane][: len(accepted)]
        held = self.checker.held[request.lane] + len(accepted)
        room = min(len(request.blocks) * BLOCK_SIZE, self._capacity.max_model_len) - held - 1
        state, kv = self.lanes[request.lane], list(self._kv_of(request.blocks, held))
        for token in accepted:
            state = _mix(state, token)
        drafts, token = [], request.tokens[-1]
        for _ in range(min(request.count, room)):
            state = _mix(state, token)
            kv.append(state)
            token = int(logits_of(state, _fold(np.array(kv, dtype=np.int64))).argmax())
            wrong = self.mistakes and self.chance.randrange(self.mistakes) == 0
            drafts.append((token + wrong) % VOCAB)
            token = drafts[-1]
        return tuple(drafts)

    def _kv_of(self, blocks: Sequence[int], length: int) -> np.ndarray:
        return self.kv[list(blocks[: -(-length // BLOCK_SIZE)])].reshape(-1)[:length]

    def _kv_digest(self, row: Row, length: int) -> int:
        return _fold(self._kv_of(row.blocks, length))
