"""Sampling on the host: the rows that need more than a device gives, drawn by the same definition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xgrammar
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import GrammarOutput
from vllm.v1.outputs import LogprobsLists

from qwen36_neuron.runtime import Output, Sampling
from qwen36_neuron.runtime.choose import draw

from .requests import RequestState
from .thinking_budget import ThinkingBudget
from .vllm_sampler import GREEDY_BELOW, VllmSampler


def needs_logits(state: RequestState, has_custom_processors: bool) -> bool:
    """Whether the next token cannot be chosen from the logits alone, or more than the token is wanted."""
    params = state.params
    return (
        has_custom_processors
        or params.structured_outputs is not None
        or params.logprobs is not None
        or bool(params.logprob_token_ids)
        or params.repetition_penalty != 1.0
        or params.frequency_penalty != 0.0
        or params.presence_penalty != 0.0
        or bool(params.logit_bias)
        or bool(params.bad_words_token_ids)
        or params.allowed_token_ids is not None
        or params.min_tokens > len(state.output)
    )


def device_choice(
    state: RequestState, has_custom_processors: bool, candidates: int, vocab_size: int
) -> tuple[Output, Sampling | None]:
    """What to ask the device for: a token and how to draw it, or logits for the host's sampler.

    A request is drawn on the device if its token depends on the logits, temperature, top-k, top-p and min-p alone, and
    its top-k, if it has one, is within the device's candidates. Its own random stream gives the number that decides; a
    request without a seed takes it from the process's. The host draws by the same number, so where a token is drawn
    changes no seeded request.

    Args:
        candidates: most likely tokens that the device draws from; 0 if it draws none.
    """
    if needs_logits(state, has_custom_processors):
        return Output.LOGITS, None
    params = state.params
    if params.temperature < GREEDY_BELOW:
        return Output.TOKEN, None
    top_k = params.top_k if 0 < params.top_k < vocab_size else 0
    if not candidates or top_k > candidates:
        return Output.LOGITS, None
    return Output.TOKEN, draw_of(state, vocab_size)


def draw_of(state: RequestState, vocab_size: int) -> Sampling | None:
    """How a request's next token is drawn, with the next number of its stream; None for the most likely token."""
    params = state.params
    if params.temperature < GREEDY_BELOW:
        return None
    top_k = params.top_k if 0 < params.top_k < vocab_size else 0
    uniform = float(torch.rand(1, generator=state.generator))
    return Sampling(params.temperature, uniform, top_k, params.top_p, params.min_p)


class HostSampler:
    """Turns logits into tokens as the requests ask. One call a step, rows in any order, each request once.

    A request's logits are changed as it asks, and its token is drawn by a number of its own stream, as a device draws
    it. What only vLLM's sampler does is left to that, for the requests that ask for it.
    """

    def __init__(self, vllm_config: VllmConfig, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.vllm = VllmSampler(vllm_config, vocab_size)
        self.sampler = self.vllm.sampler
        self.has_custom_processors = self.vllm.has_custom_processors
        self._budget = ThinkingBudget(vllm_config, torch.device("cpu"), False)

    def ends_reasoning(self, state: RequestState) -> bool:
        """Whether the request's thinking budget decides its next token."""
        return self._budget.due(state.params, state.prompt, state.output) is not None

    def warm_up(self) -> None:
        """Compile what draws, so that no request waits for it."""
        draw(torch.zeros(2, 2), [None, Sampling(1.0, 0.5)])

    def sample(
        self, rows: Sequence[RequestState], logits: torch.Tensor, grammar: GrammarOutput | None
    ) -> tuple[list[int], LogprobsLists | None]:
        """Sample one token a row.

        Args:
            rows: the requests, in the order of the logits.
            logits: fp32 [len(rows), vocab], overwritten.
            grammar: bitmasks of the requests with structured output, if any.

        Returns:
            One token id a row, and the log-probabilities if any row asked for them, indexed by row.
        """
        if grammar is not None:
            apply_grammar(rows, logits, grammar)
        scores: dict[int, torch.Tensor] = {}
        if self.has_custom_processors:
            tokens, every = self.vllm.sample(rows, logits)
            scores = {} if every is None else dict(enumerate(every.split(1)))
        else:
            tokens = self._draw(rows, logits, scores)
        wanted = {i: score for i, score in scores.items() if rows[i].params.num_logprobs is not None}
        if not wanted:
            return tokens, None
        return tokens, self._table(rows, tokens, wanted)

    def _draw(self, rows: Sequence[RequestState], logits: torch.Tensor, scores: dict[int, torch.Tensor]) -> list[int]:
        """A token a row; `scores` is given what the log-probabilities of a row that wants some are taken from."""
        mode, own, tokens = self.sampler.logprobs_mode, [], [0] * len(rows)
        for i, state in enumerate(rows):
            if state.params.num_logprobs is None:
                own.append(i)
            elif mode.startswith("processed"):
                (tokens[i],), score = self.vllm.sample([state], logits[i : i + 1])
                scores |= {} if score is None else {i: score}
            else:
                own.append(i)
                raw = logits[i : i + 1]
                scores[i] = raw.clone() if mode == "raw_logits" else self.sampler.compute_logprobs(raw)
        for i in own:
            rows[i].edit(logits[i])
            self._budget.force(logits[i], rows[i].params, rows[i].prompt, rows[i].output)
        if own:
            drawn = draw(
                logits if len(own) == len(rows) else logits[own], [draw_of(rows[i], self.vocab_size) for i in own]
            )
            for i, token in zip(own, drawn, strict=True):
                tokens[i] = token
        return tokens

    def _table(self, rows: Sequence[RequestState], tokens: list[int], scores: dict[int, torch.Tensor]) -> LogprobsLists:
        """Of every row the sampled token, then the tokens that its request names, or else the most likely ones.

        A row is computed by itself, and has as many columns as the widest; what is beyond its own is not read.

        Args:
            scores: fp32 [1, vocab] of each row that wants some, what its request is to see.
        """
        found = {i: self._row(rows[i].params, score, tokens[i]) for i, score in scores.items()}
        width = max(ids.shape[1] for ids, _, _ in found.values())
        table = LogprobsLists(
            np.zeros((len(rows), width), np.int32),
            np.full((len(rows), width), -np.inf, np.float32),
            np.zeros(len(rows), np.int64),
        )
        for i, (ids, values, rank) in found.items():
            table.logprob_token_ids[i, : ids.shape[1]] = ids[0]
            table.logprobs[i, : ids.shape[1]] = values[0]
            table.sampled_token_ranks[i] = rank[0]
        return table

    def _row(
        self, params: SamplingParams, scores: torch.Tensor, token: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        named = params.logprob_token_ids
        count = 0 if named else self.vocab_size if params.logprobs == -1 else params.logprobs or 0
        ids, values, rank, *_ = self.sampler.gather_logprobs(scores, count, torch.tensor([token]))
        if named:
            wanted = torch.tensor([named], dtype=ids.dtype)
            ids, values = torch.cat((ids, wanted), 1), torch.cat((values, scores[:, named]), 1)
        return ids, values, rank


def apply_grammar(rows: Sequence[RequestState], logits: torch.Tensor, grammar: GrammarOutput) -> None:
    """Forbid, in place, what the grammars do not allow next.

    The bitmask is int32 [number of structured requests, vocab / 32], in the order of the grammar's request ids, which
    is not that of the rows.
    """
    row_of = {state.request_id: i for i, state in enumerate(rows)}
    wanted = [(row_of[rid], j) for j, rid in enumerate(grammar.structured_output_request_ids) if rid in row_of]
    if wanted:
        bitmask = torch.from_numpy(np.ascontiguousarray(grammar.grammar_bitmask[[j for _, j in wanted]]))
        full = torch.full((len(rows), bitmask.shape[1]), -1, dtype=torch.int32)
        indices = [i for i, _ in wanted]
        full[indices] = bitmask
        xgrammar.apply_token_bitmask_inplace(logits, full, indices=indices)
