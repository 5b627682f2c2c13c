"""The step contract: all that passes between the engine side and a device.

The engine side says which rows to run and where their memory is; the device answers with tokens or logits. CPU and
Neuron take exactly these objects, so a scheduler tested on CPU is tested on what a device will be told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

import torch

from .config import BLOCK_SIZE


class Output(Enum):
    """What a row must give back."""

    NOTHING = "nothing"
    """A prefill chunk that is not the last: only the caches change."""
    TOKEN = "token"
    """The next token, chosen where the logits are: the most likely one, or one drawn as the row's `sampling` says."""
    LOGITS = "logits"
    """The logits after the last token run."""
    ALL_LOGITS = "all_logits"
    """The logits after every token run, for prompt log-probabilities."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Copy the state after `boundary` tokens of the sequence into checkpoint slot `slot`.

    `boundary` is an absolute position, a multiple of BLOCK_SIZE, after at least one token of the row.
    """

    boundary: int
    slot: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn: from softmax(logits / temperature), cut by min-p, top-k and top-p in that order.

    Attributes:
        temperature: above 0.
        uniform: the number in [0, 1) that decides. The caller draws it, so a request's seed is the caller's and a
            device has no random state: the same logits and numbers give the same token whatever else runs.
        later: the numbers of the tokens after that, one for each of the row's drafts: a token's number goes by its
            position, whether it is drawn alone or to verify a draft.
        top_k: how many of the most likely tokens may be drawn; 0 for all.
        top_p: in (0, 1], the mass that the most likely tokens of what top-k leaves must reach together.
        min_p: in [0, 1], what a token's probability must be at least, as a part of the most likely one's.
    """

    temperature: float
    uniform: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    later: tuple[float, ...] = ()

    def at(self, place: int) -> Sampling:
        """How the token `place` tokens after the first is drawn."""
        return replace(self, uniform=(self.uniform, *self.later)[place], later=())

    def problem(self) -> str | None:
        """What is wrong with the values, if anything is."""
        for name, value, right, rule in (
            ("temperature", self.temperature, 0.0 < self.temperature < float("inf"), "above 0"),
            ("uniform", self.uniform, 0.0 <= self.uniform < 1.0, "in [0, 1)"),
            ("later", self.later, all(0.0 <= number < 1.0 for number in self.later), "numbers in [0, 1)"),
            ("top_k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "in (0, 1]"),
            ("min_p", self.min_p, 0.0 <= self.min_p <= 1.0, "in [0, 1]"),
        ):
            if not right:
                return f"{name} must be {rule}, not {value}"
        return None


@dataclass(frozen=True, slots=True)
class Row:
    """The work of one sequence in one step.

    Attributes:
        request_id: for messages only.
        lane: running-state lane that the sequence owns; 1 or more, 0 is scratch.
        tokens: the token ids to run now. They are positions `start` .. `start + len(tokens) - 1`.
        start: tokens of the sequence that the lane and the KV blocks already hold. At 0 the lane is zeroed first.
            Where the lane's last row had drafts, as many more as were accepted of them.
        blocks: ids of the KV blocks of the sequence in order, enough to hold every token run.
        restore: checkpoint slot to copy into the lane before running; only for a row whose prefix was reused.
        commits: checkpoints to write, in ascending order of boundary; also at boundaries that accepted drafts crossed.
        output: what to give back.
        sampling: how to draw the token of Output.TOKEN; None for the most likely one.
        drafts: tokens that are proposed to follow `tokens`. They are run, and stay outside of what the lane holds: the
            next row's `start` says how many were right.
    """

    request_id: str
    lane: int
    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    restore: int | None = None
    commits: tuple[Commit, ...] = ()
    output: Output = Output.TOKEN
    sampling: Sampling | None = None
    drafts: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """Tokens of the sequence that are held once the row has run."""
        return self.start + len(self.tokens)

    @property
    def reach(self) -> int:
        """Tokens of the sequence that have run then, drafts included."""
        return self.end + len(self.drafts)


@dataclass(frozen=True, slots=True)
class Step:
    """The rows to run together. A lane appears in one row at most.

    Attributes:
        rows: the work.
        released_lanes: lanes whose sequences ended or were preempted since the last step.
    """

    rows: tuple[Row, ...]
    released_lanes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RowResult:
    """What one row gave back.

    Attributes:
        tokens: sampled token ids, for Output.TOKEN: the drafts that are what would have been sampled, up to the first
            that is not, and the token that follows them.
        logits: fp32 [1 + len(row.drafts), vocab] for Output.LOGITS, [len(row.tokens), vocab] for Output.ALL_LOGITS.
    """

    tokens: tuple[int, ...] = ()
    logits: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """Asks the model's draft layer what may follow tokens that are certain but have not all run.

    Attributes:
        request_id: for messages only.
        lane: running-state lane of the sequence.
        tokens: what the lane's last row gave: the drafts of it that were right, and the token after them.
        blocks: ids of the KV blocks of the sequence in order, enough for `tokens`.
        count: drafts wanted. Fewer are made where the blocks or the maximum length end.
    """

    request_id: str
    lane: int
    tokens: tuple[int, ...]
    blocks: Sequence[int]
    count: int

    def room(self, start: int, max_model_len: int) -> int:
        """Drafts that fit, of those wanted; `start` is the position of the last of `tokens`.

        A row that verifies n of them reaches n positions beyond its own token.
        """
        return max(0, min(self.count, min(len(self.blocks) * BLOCK_SIZE, max_model_len) - start - 1))


@dataclass(frozen=True, slots=True)
class StepResult:
    """One result a row, in the order of the step's rows."""

    rows: tuple[RowResult, ...] = ()


class StepError(RuntimeError):
    """A step that breaks the contract. Nothing was run and nothing was changed."""


class DeviceError(RuntimeError):
    """The device failed or did not answer in time; its state is not to be trusted any more."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much a runtime was built to hold."""

    num_blocks: int
    num_lanes: int
    num_slots: int
    max_model_len: int
    max_step_tokens: int
    """Tokens that one step may run, over all rows."""
    sampling_candidates: int = 0
    """Most likely tokens that a draw looks at where the logits are; 0 if rows may not ask for one."""
    max_drafts: int = 0
    """Drafts that a row may have; 0 where none are verified."""
    max_proposals: int = 0
    """Drafts that the model's own draft layer makes at most; 0 where it is not held."""


class Runtime(Protocol):
    """One model on one device, driven step by step by one caller."""

    @property
    def capacity(self) -> Capacity: ...

    @property
    def vocab_size(self) -> int: ...

    def warm_up(self) -> None:
        """Run every graph once, and leave no trace in any lane, block or slot."""

    def run(self, step: Step) -> StepResult:
        """Run one step.

        Raises:
            StepError: the step breaks the contract.
            DeviceError: the device failed.
        """
        ...

    def draft(self, requests: Sequence[DraftRequest]) -> tuple[tuple[int, ...], ...]:
        """Drafts of the model's own draft layer, after the step that gave each request's tokens and before the next.

        Raises:
            StepError: a request breaks the contract, or there is no draft layer.
            DeviceError: the device failed.
        """
        ...

    def close(self) -> None:
        """Give the device back."""


@dataclass(slots=True)
class StepChecker:
    """Refuses steps that would read stale state, write twice or fall outside the memory.

    Keeps the number of tokens that each lane holds, and the drafts that it has run beyond them, which is all that is
    needed to tell.
    """

    capacity: Capacity
    vocab_size: int
    held: dict[int, int] = field(default_factory=dict)
    proposed: dict[int, tuple[int, ...]] = field(default_factory=dict)
    asked: dict[int, int] = field(default_factory=dict)
    """Lanes that were asked for drafts since their last row, and how many of its own were said to be right."""

    def accepted(self, row: Row) -> int:
        """How many of its lane's last drafts a row says were right."""
        return row.start - self.held[row.lane] if row.restore is None and row.start else 0

    def check(self, step: Step) -> None:
        """Raises StepError naming the request and the rule; changes nothing."""
        held = {lane: n for lane, n in self.held.items() if lane not in step.released_lanes}
        if sum(len(row.tokens) + len(row.drafts) for row in step.rows) > self.capacity.max_step_tokens:
            raise StepError(f"a step may run {self.capacity.max_step_tokens} tokens at most")
        lanes: set[int] = set()
        written: set[int] = set()
        restored = {row.restore for row in step.rows}
        for row in step.rows:
            where = f"request {row.request_id} lane {row.lane}"
            self._check_row(row, where, held)
            if row.lane in lanes:
                raise StepError(f"{where}: the lane is in two rows of one step")
            lanes.add(row.lane)
            for commit in row.commits:
                if commit.slot in written or commit.slot in restored:
                    raise StepError(f"{where}: slot {commit.slot} is also written or read by another row of this step")
                written.add(commit.slot)

    def _check_row(self, row: Row, where: str, held: dict[int, int]) -> None:
        cap = self.capacity
        if not 1 <= row.lane <= cap.num_lanes:
            raise StepError(f"{where}: lanes are 1..{cap.num_lanes}")
        if not row.tokens:
            raise StepError(f"{where}: no tokens to run")
        if row.reach > cap.max_model_len:
            raise StepError(f"{where}: would hold {row.reach} tokens, the maximum is {cap.max_model_len}")
        if min(*row.tokens, *row.drafts, 0) < 0 or max(*row.tokens, *row.drafts, 0) >= self.vocab_size:
            raise StepError(f"{where}: token ids must be 0..{self.vocab_size - 1}")
        if len(row.blocks) * BLOCK_SIZE < row.reach:
            raise StepError(f"{where}: {len(row.blocks)} blocks cannot hold {row.reach} tokens")
        needed = row.blocks[: -(-row.reach // BLOCK_SIZE)]
        if min(needed) < 1 or max(needed) >= cap.num_blocks:
            raise StepError(f"{where}: block ids must be 1..{cap.num_blocks - 1}, block 0 is scratch")
        if row.restore is not None:
            if not 1 <= row.restore <= cap.num_slots:
                raise StepError(f"{where}: slots are 1..{cap.num_slots}, cannot restore {row.restore}")
            if row.start == 0 or row.start % BLOCK_SIZE:
                raise StepError(
                    f"{where}: a checkpoint is of a positive multiple of {BLOCK_SIZE} tokens, not {row.start}"
                )
        elif row.start:
            first, drafted = held.get(row.lane, 0), len(self.proposed.get(row.lane, ()))
            if row.lane not in held or not first <= row.start <= first + drafted:
                also = f" and has run {drafted} drafts" if drafted and first else ""
                raise StepError(f"{where}: holds {first} tokens{also} but the row starts at {row.start}")
            if row.start != first + self.asked.get(row.lane, row.start - first):
                right = self.asked[row.lane]
                raise StepError(
                    f"{where}: {right} drafts were right when more were asked for, and now {row.start - first}"
                )
        self._check_drafts(row, where)
        boundary = held[row.lane] if row.restore is None and row.start else row.start
        for commit in row.commits:
            if commit.boundary % BLOCK_SIZE or not boundary < commit.boundary <= row.end:
                raise StepError(f"{where}: no checkpoint can be taken at {commit.boundary} in {boundary}..{row.end}")
            if not 1 <= commit.slot <= cap.num_slots:
                raise StepError(f"{where}: slots are 1..{cap.num_slots}, cannot write {commit.slot}")
            boundary = commit.boundary
        if row.sampling is not None:
            self._check_sampling(row, row.sampling, where)

    def _check_drafts(self, row: Row, where: str) -> None:
        if not row.drafts:
            return
        if len(row.drafts) > self.capacity.max_drafts:
            raise StepError(f"{where}: {len(row.drafts)} drafts, and a row may have {self.capacity.max_drafts}")
        if row.output not in (Output.TOKEN, Output.LOGITS):
            raise StepError(f"{where}: asks for {row.output.value}, which verifies no drafts")

    def drafted(self, requests: Sequence[DraftRequest]) -> None:
        """Remember who was asked for drafts."""
        self.asked.update({request.lane: len(request.tokens) - 1 for request in requests})

    def check_drafting(self, requests: Sequence[DraftRequest]) -> None:
        """Raises StepError naming the request and the rule."""
        cap = self.capacity
        if not cap.max_proposals:
            raise StepError("this runtime holds no draft layer")
        for request in requests:
            where = f"request {request.request_id} lane {request.lane}"
            if request.lane not in self.held:
                raise StepError(f"{where}: holds no tokens")
            if request.lane in self.asked:
                raise StepError(f"{where}: was asked for drafts already since its last row")
            *accepted, _ = request.tokens or (None,)
            drafted = self.proposed.get(request.lane, ())
            if not request.tokens or tuple(accepted) != drafted[: len(accepted)]:
                raise StepError(f"{where}: {request.tokens} do not begin with drafts of its last row, {drafted}")
            if not 0 <= min(request.tokens) <= max(request.tokens) < self.vocab_size:
                raise StepError(f"{where}: token ids must be 0..{self.vocab_size - 1}")
            if not 0 <= request.count <= cap.max_proposals:
                raise StepError(f"{where}: {request.count} drafts, and 0..{cap.max_proposals} can be made")
            reach = self.held[request.lane] + len(accepted)
            if len(request.blocks) * BLOCK_SIZE < reach:
                raise StepError(f"{where}: {len(request.blocks)} blocks cannot hold {reach} tokens")
            if min(request.blocks) < 1 or max(request.blocks) >= cap.num_blocks:
                raise StepError(f"{where}: block ids must be 1..{cap.num_blocks - 1}, block 0 is scratch")
        if len({request.lane for request in requests}) < len(requests):
            raise StepError("a lane is asked for drafts twice")

    def _check_sampling(self, row: Row, sampling: Sampling, where: str) -> None:
        if not self.capacity.sampling_candidates:
            raise StepError(f"{where}: this runtime draws no tokens, ask for logits")
        if row.output is not Output.TOKEN:
            raise StepError(f"{where}: asks for {row.output.value}, which needs no sampling parameters")
        problem = sampling.problem()
        if problem is not None:
            raise StepError(f"{where}: {problem}")
        if len(sampling.later) != len(row.drafts):
            raise StepError(f"{where}: {len(row.drafts)} drafts need as many later numbers, not {len(sampling.later)}")

    def apply(self, step: Step) -> None:
        """Remember what the lanes hold after `step`."""
        for lane in step.released_lanes:
            self.held.pop(lane, None)
            self.proposed.pop(lane, None)
        for row in step.rows:
            self.held[row.lane] = row.end
            self.asked.pop(row.lane, None)
            self.proposed[row.lane] = tuple(row.drafts)
