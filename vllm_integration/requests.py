"""What the worker remembers of each request between steps: tokens, blocks, slots, lane and sampling state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.outputs import LogprobsTensors

from .lanes import LaneAllocator
from .logit_edits import LogitEdits

if TYPE_CHECKING:
    from .speculation.drafter import DraftHistory


@dataclass(slots=True)
class RequestState:
    """One request as the worker knows it, and what the current step runs of it: tokens start .. end - 1.

    Attributes:
        prompt: its prompt's token ids.
        output: token ids sampled so far. Logits processors hold this very list, so it is only ever grown or refilled
            in place; `refill` does the latter.
        blocks: KV block ids, block i holding tokens 64 i .. 64 i + 63.
        slots: checkpoint slot ids, entry i being of the state after 64 (i + 1) tokens; 0 where none is kept.
        lane: the running-state lane it owns; 0 while it is preempted.
        generator: its own random stream, if it asked for a seed.
        owes_prompt_logprobs: whether prompt log-probabilities were asked for and not delivered yet.
        prompt_logprobs: the table being filled with them.
        edits: what the request changes in its logits, with its count of tokens; None until it is asked for.
        start: tokens computed before this step, drafts that were right among them.
        end: tokens computed once this step has run, without its drafts.
        began: tokens that the lane began with, from a checkpoint.
        held: tokens that the lane holds: the drafts that were right of its last row are not among them yet.
        restores: whether the lane holds nothing yet, and the first `start` tokens come from a checkpoint.
        drafts: tokens proposed to follow, that this step verifies.
        scheduled_drafts: how many the scheduler counts; what it filled up with is among them.
        given: tokens that the last step gave.
        numbers: of its random stream, those of the tokens to come, as far as they have been drawn.
        drafting: what its drafts have earned.
    """

    request_id: str
    params: SamplingParams
    prompt: list[int]
    output: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    lane: int = 0
    generator: torch.Generator | None = None
    owes_prompt_logprobs: bool = False
    prompt_logprobs: LogprobsTensors | None = None
    edits: LogitEdits | None = None
    start: int = 0
    end: int = 0
    began: int = 0
    held: int = 0
    restores: bool = False
    drafts: tuple[int, ...] = ()
    scheduled_drafts: int = 0
    given: int = 0
    numbers: list[float] = field(default_factory=list)
    drafting: DraftHistory | None = None

    def refill(self, output: Sequence[int]) -> None:
        """Replace the output, as a request that resumes after preemption may; what was counted of it is forgotten."""
        if len(output) != len(self.output):
            self.numbers.clear()
        self.output[:] = output
        self.edits = None

    def edit(self, logits: torch.Tensor) -> None:
        """Apply, in place, what the request asks to be changed in its logits, fp32 [vocab] on the host."""
        if self.edits is None:
            self.edits = LogitEdits(self.params, self.prompt, self.output)
        self.edits.apply(logits.numpy())

    @property
    def num_tokens(self) -> int:
        """Tokens known: the prompt and what was sampled."""
        return len(self.prompt) + len(self.output)

    @property
    def samples(self) -> bool:
        """Whether this step gives a token: every known token has been run then."""
        return self.end == self.num_tokens

    def schedule(
        self, start: int, num_tokens: int, *, restores: bool, drafts: Sequence[int] = (), fresh: bool = False
    ) -> RequestState:
        """Set what the step runs; gives the same object.

        Args:
            start, num_tokens: `num_tokens` tokens from position `start` on, `drafts` among them.
            drafts: the last of them, proposed. What follows a negative one is the scheduler's filling, and is not run.
            fresh: whether the lane is a new one.
        """
        self.start, self.end, self.restores = start, start + num_tokens - len(drafts), restores
        self.scheduled_drafts = len(drafts)
        self.drafts = tuple(takewhile(lambda token: token >= 0, drafts))
        if fresh:
            self.held = self.began = start
            if self.drafting is not None:
                self.drafting.seen = 0
        return self

    def ran(self) -> None:
        """The step that was set has run."""
        self.held = self.end

    def give(self, token: int) -> None:
        """The request gets one more token, and its next one the next number."""
        self.output.append(token)
        del self.numbers[:1]

    def number(self, place: int = 0) -> float:
        """The number in [0, 1) that decides the token `place` tokens from now, however often it is asked for."""
        while len(self.numbers) <= place:
            self.numbers.append(float(torch.rand(1, generator=self.generator)))
        return self.numbers[place]

    def scheduled_tokens(self) -> list[int]:
        """Token ids at positions start .. end - 1."""
        start, end, split = self.start, self.end, len(self.prompt)
        if start >= split:
            return self.output[start - split : end - split]
        return self.prompt[start:end] + (self.output[: end - split] if end > split else [])


class RequestTable:
    """Follows vLLM's scheduler: applies each SchedulerOutput to the states and to the lanes."""

    def __init__(self, lanes: LaneAllocator, attention_group: int, slot_group: int) -> None:
        self.lanes = lanes
        self.states: dict[str, RequestState] = {}
        self._attention_group = attention_group
        self._slot_group = slot_group

    def update(self, output: SchedulerOutput) -> list[RequestState]:
        """Apply what happened since the last step; the requests of this one, in the scheduler's order."""
        for request_id in output.finished_req_ids:
            self.lanes.release(request_id)
            self.states.pop(request_id, None)
        for request_id in output.preempted_req_ids or ():
            self.lanes.release(request_id)
            if request_id in self.states:
                self.states[request_id].lane = 0
        rows: dict[str, RequestState] = {}
        drafts = output.scheduled_spec_decode_tokens
        for new in output.scheduled_new_reqs:
            name = new.req_id
            rows[name] = self._admit(new, output.num_scheduled_tokens[name], drafts.get(name, ()))
        cached = output.scheduled_cached_reqs
        for index, name in enumerate(cached.req_ids):
            rows[name] = self._advance(cached, index, output.num_scheduled_tokens[name], drafts.get(name, ()))
        return [rows[request_id] for request_id in output.num_scheduled_tokens]

    def _admit(self, new: NewRequestData, num_tokens: int, drafts: Sequence[int]) -> RequestState:
        """A request's first step, or, where the scheduler announces them the same way, its first after preemption."""
        state = self.states.get(new.req_id)
        if state is None:
            state = self._create(new)
            self.states[new.req_id] = state
        if new.prefill_token_ids is not None:
            state.refill(new.prefill_token_ids[len(state.prompt) :])
        self._place(state, new.block_ids)
        start = new.num_computed_tokens
        return state.schedule(start, num_tokens, restores=start > 0, drafts=drafts, fresh=True)

    def _create(self, new: NewRequestData) -> RequestState:
        params = new.sampling_params
        if params is None or new.prompt_token_ids is None:
            raise RuntimeError(f"request {new.req_id} has no sampling parameters or no token ids")
        state = RequestState(new.req_id, params, list(new.prompt_token_ids))
        if params.seed is not None:
            state.generator = torch.Generator().manual_seed(params.seed)
        state.owes_prompt_logprobs = params.prompt_logprobs is not None
        return state

    def _advance(self, cached: CachedRequestData, index: int, num_tokens: int, drafts: Sequence[int]) -> RequestState:
        request_id = cached.req_ids[index]
        state = self.states[request_id]
        start = cached.num_computed_tokens[index]
        blocks = cached.new_block_ids[index]
        resumed = request_id in cached.resumed_req_ids
        if resumed:
            tokens = cached.all_token_ids.get(request_id)
            if tokens is not None:
                state.refill(tokens[len(state.prompt) :])
            self._place(state, blocks or ((), ()))
        elif blocks is not None:
            state.blocks.extend(blocks[self._attention_group])
            state.slots.extend(blocks[self._slot_group])
        return state.schedule(start, num_tokens, restores=resumed and start > 0, drafts=drafts, fresh=resumed)

    def _place(self, state: RequestState, block_ids: Sequence[Sequence[int]]) -> None:
        state.blocks = list(block_ids[self._attention_group])
        state.slots = list(block_ids[self._slot_group])
        state.lane = self.lanes.acquire(state.request_id)
