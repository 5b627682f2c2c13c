"""One step: vLLM's SchedulerOutput in, the step contract across, vLLM's ModelRunnerOutput out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from vllm.logger import init_logger
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.runtime import Commit, Output, Row, RowResult, Runtime, Sampling, Step, StepError

from .outputs import RunnerOutput
from .prompt_logprobs import PromptLogprobs
from .requests import RequestState, RequestTable
from .sampling import HostSampler, device_choice

logger = init_logger("vllm.vllm_integration.runner")


@dataclass(slots=True)
class _Pending:
    """A step that has run and whose tokens are not chosen yet."""

    states: list[RequestState]
    results: tuple[RowResult, ...]


class ModelRunner:
    """Drives one runtime.

    A step that the runtime refuses (StepError) changed nothing, so its requests fail and the engine goes on; a device
    that fails (DeviceError) has state that nobody can vouch for, so the error is let through and ends the engine: vLLM
    then fails every request, answers 503 on /health and exits.
    """

    def __init__(self, runtime: Runtime, table: RequestTable, sampler: HostSampler) -> None:
        self.runtime = runtime
        self.table = table
        self.sampler = sampler
        self.prompt_logprobs = PromptLogprobs(sampler.sampler, runtime.vocab_size)
        self._pending: _Pending | None = None

    def execute(self, scheduled: SchedulerOutput) -> RunnerOutput | None:
        """Run a step. None means that `sample` must follow, with the grammars' bitmasks."""
        states = self.table.update(scheduled)
        if not states:
            return self._output([])
        try:
            results = self.runtime.run(self._step(states)).rows
        except StepError as error:
            logger.error("The runtime refused a step; its %d requests fail: %s", len(states), error)
            output = self._output([state.request_id for state in states])
            output.sampled_token_ids = [[] for _ in states]
            output.failure = str(error)
            return output
        self.table.lanes.announced()
        self._pending = _Pending(states, results)
        return None if scheduled.has_structured_output_requests else self.sample(None)

    def sample(self, grammar: GrammarOutput | None) -> RunnerOutput:
        """Choose the tokens of the step that `execute` ran."""
        if self._pending is None:
            raise RuntimeError("no step waits for its tokens")
        states, results = self._pending.states, self._pending.results
        self._pending = None
        # Log-probabilities are looked up by a request's index, so the requests that may have them go first.
        order = sorted(range(len(states)), key=lambda i: results[i].logits is None or not states[i].samples)
        states, results = [states[i] for i in order], tuple(results[i] for i in order)
        output = self._output([state.request_id for state in states])
        for state, result in zip(states, results, strict=True):
            if state.owes_prompt_logprobs and result.logits is not None:
                table = self.prompt_logprobs.collect(state, result.logits)
                if table is not None:
                    output.prompt_logprobs_dict[state.request_id] = table
        hosted = [
            (state, result.logits[-1:])
            for state, result in zip(states, results, strict=True)
            if state.samples and result.logits is not None
        ]
        tokens: list[int] = []
        if hosted:
            sampled = [state for state, _ in hosted]
            tokens, output.logprobs = self.sampler.sample(sampled, torch.cat([last for _, last in hosted]), grammar)
        for i, (state, result) in enumerate(zip(states, results, strict=True)):
            chosen = [tokens[i]] if i < len(tokens) else list(result.tokens) if state.samples else []
            state.output.extend(chosen)
            output.sampled_token_ids.append(chosen)
        return output

    def _step(self, states: list[RequestState]) -> Step:
        return Step(tuple(self._row(state) for state in states), self.table.lanes.released)

    def _row(self, state: RequestState) -> Row:
        slots = state.slots
        first = state.start // BLOCK_SIZE
        last = min(state.end // BLOCK_SIZE, len(slots))
        output, sampling = self._wanted(state)
        return Row(
            request_id=state.request_id,
            lane=state.lane,
            tokens=state.scheduled_tokens(),
            start=state.start,
            blocks=state.blocks,
            restore=slots[first - 1] if state.restores else None,
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
