"""One step: vLLM's SchedulerOutput in, the step contract across, vLLM's ModelRunnerOutput out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from vllm.logger import init_logger
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.outputs import DraftTokenIds

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.runtime import Commit, Output, Row, RowResult, Runtime, Sampling, Step, StepError

from .outputs import RunnerOutput
from .prompt_logprobs import PromptLogprobs
from .requests import RequestState, RequestTable
from .sampling import HostSampler, TokenLogprobs, device_choice, grammar_masks, logprobs_table
from .speculation.drafter import Drafter

logger = init_logger("vllm.vllm_integration.runner")


@dataclass(slots=True)
class _Pending:
    """A step that has run and whose tokens are not chosen yet.

    Attributes:
        seconds: that it took to run.
    """

    states: list[RequestState]
    results: tuple[RowResult, ...]
    seconds: float


class ModelRunner:
    """Drives one runtime.

    A step that the runtime refuses (StepError) changed nothing, so its requests fail and the engine goes on; a device
    that fails (DeviceError) has state that nobody can vouch for, so the error is let through and ends the engine: vLLM
    then fails every request, answers 503 on /health and exits.

    Args:
        drafter: who makes drafts; None for no speculation.
    """

    def __init__(
        self, runtime: Runtime, table: RequestTable, sampler: HostSampler, drafter: Drafter | None = None
    ) -> None:
        self.runtime = runtime
        self.table = table
        self.sampler = sampler
        self.drafter = drafter
        self.prompt_logprobs = PromptLogprobs(sampler.sampler, runtime.vocab_size)
        self._pending: _Pending | None = None
        self._given: list[RequestState] = []

    def execute(self, scheduled: SchedulerOutput) -> RunnerOutput | None:
        """Run a step. None means that `sample` must follow, with the grammars' bitmasks."""
        states = self.table.update(scheduled)
        self._given = []
        if not states:
            return self._output([])
        started = time.perf_counter()
        try:
            results = self.runtime.run(self._step(states)).rows
        except StepError as error:
            logger.error("The runtime refused a step; its %d requests fail: %s", len(states), error)
            output = self._output([state.request_id for state in states])
            output.sampled_token_ids = [[] for _ in states]
            output.failure = str(error)
            return output
        self.table.lanes.announced()
        for state in states:
            state.ran()
        self._pending = _Pending(states, results, time.perf_counter() - started)
        return None if scheduled.has_structured_output_requests else self.sample(None)

    def sample(self, grammar: GrammarOutput | None) -> RunnerOutput:
        """Choose the tokens of the step that `execute` ran."""
        if self._pending is None:
            raise RuntimeError("no step waits for its tokens")
        states, results, seconds = self._pending.states, self._pending.results, self._pending.seconds
        self._pending = None
        started = time.perf_counter()
        output = self._output([state.request_id for state in states])
        for state, result in zip(states, results, strict=True):
            if state.owes_prompt_logprobs and result.logits is not None:
                table = self.prompt_logprobs.collect(state, result.logits)
                if table is not None:
                    output.prompt_logprobs_dict[state.request_id] = table
        self._given = [state for state in states if state.samples]
        for state in states:
            state.given = 0
        found = self._sample_on_host(states, results, grammar)
        for state, result in zip(states, results, strict=True):
            for token in result.tokens if result.logits is None else ():
                state.give(token)
                state.given += 1
            output.sampled_token_ids.append(state.output[len(state.output) - state.given :])
        output.logprobs = logprobs_table([found.get(state.request_id, []) for state in states])
        if self.drafter is not None:
            self.drafter.stepped(states, seconds + time.perf_counter() - started)
        return output

    def drafts(self) -> DraftTokenIds | None:
        """Drafts for the next step of the requests that the last one gave tokens; None where nobody gets any."""
        if self.drafter is None or not self._given:
            return None
        given, self._given = self._given, []
        drafts = self.drafter.draft(given)
        return DraftTokenIds([state.request_id for state in given], drafts) if any(drafts) else None

    def _sample_on_host(
        self, states: Sequence[RequestState], results: Sequence[RowResult], grammar: GrammarOutput | None
    ) -> dict[str, list[TokenLogprobs | None]]:
        """Sample from the logits of requests that want more than a token, place by place.

        A request goes on to the next place while its token is the draft there, so each of its tokens is sampled as it
        would be without drafts: by what was given before it, with its own number and its own grammar's bitmask. Where
        what was given before does not matter, all of a request's places are sampled at once.

        Returns:
            By request, the log-probabilities of each of its tokens.
        """
        masks = grammar_masks(states, grammar)
        alive = [
            (state, result.logits[-1 - len(state.drafts) :])
            for state, result in zip(states, results, strict=True)
            if state.samples and result.logits is not None
        ]
        found: dict[str, list[TokenLogprobs | None]] = {state.request_id: [] for state, _ in alive}
        while alive:
            spans = [
                range(state.given, len(rows) if self.sampler.sees_no_history(state) else state.given + 1)
                for state, rows in alive
            ]
            logits = torch.cat([rows[span.start : span.stop] for (_, rows), span in zip(alive, spans, strict=True)])
            asked = [(state, place) for (state, _), span in zip(alive, spans, strict=True) for place in span]
            wanted = {
                i: masks[state.request_id][place] for i, (state, place) in enumerate(asked) if state.request_id in masks
            }
            tokens, scores = self.sampler.sample(
                [state for state, _ in asked], logits, wanted, [place - state.given for state, place in asked]
            )
            going, at = [], 0
            for (state, rows), span in zip(alive, spans, strict=True):
                for i in range(at, at + len(span)):
                    right = state.given < len(state.drafts) and state.drafts[state.given] == tokens[i]
                    found[state.request_id].append(scores.get(i))
                    state.give(tokens[i])
                    state.given += 1
                    if not right:
                        break
                else:
                    going.append((state, rows))
                at += len(span)
            alive = going
        return found

    def _step(self, states: list[RequestState]) -> Step:
        return Step(tuple(self._row(state) for state in states), self.table.lanes.released)

    def _row(self, state: RequestState) -> Row:
        slots = state.slots
        first, last = state.held // BLOCK_SIZE, min(state.end // BLOCK_SIZE, len(slots))
        output, sampling = self._wanted(state)
        return Row(
            request_id=state.request_id,
            lane=state.lane,
            tokens=state.scheduled_tokens(),
            start=state.start,
            blocks=state.blocks,
            restore=slots[first - 1] if state.restores else None,
            drafts=state.drafts,
            commits=tuple(Commit((i + 1) * BLOCK_SIZE, slots[i]) for i in range(first, last) if slots[i]),
            output=output,
            sampling=sampling,
        )

    def _wanted(self, state: RequestState) -> tuple[Output, Sampling | None]:
        runtime = self.runtime
        if state.owes_prompt_logprobs:
            return Output.ALL_LOGITS, None
        if not state.samples:
            return Output.NOTHING, None
        if self.sampler.ends_reasoning(state):
            return Output.LOGITS, None
        candidates = runtime.capacity.sampling_candidates
        return device_choice(state, self.sampler.has_custom_processors, candidates, runtime.vocab_size)

    def _output(self, request_ids: list[str]) -> RunnerOutput:
        return RunnerOutput(
            req_ids=request_ids,
            req_id_to_index={request_id: i for i, request_id in enumerate(request_ids)},
            prompt_logprobs_dict={},
            lanes_in_use=self.table.lanes.in_use,
        )
