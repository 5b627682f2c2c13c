"""Sampling on the host: the rows that need more than a device gives, drawn by the same definition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

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
    return Output.TOKEN, draw_of(state, vocab_size, len(state.drafts))


def draw_of(state: RequestState, vocab_size: int, drafts: int = 0, place: int = 0) -> Sampling | None:
    """How a request's next token is drawn, with the next number of its stream; None for the most likely token.

    Args:
        drafts: further tokens that may be drawn, with the numbers after that.
        place: tokens that come before it and have not been given yet.
    """
    params = state.params
    if params.temperature < GREEDY_BELOW:
        return None
    top_k = params.top_k if 0 < params.top_k < vocab_size else 0
    uniform, *later = (state.number(place + ahead) for ahead in range(1 + drafts))
    return Sampling(params.temperature, uniform, top_k, params.top_p, params.min_p, tuple(later))


class TokenLogprobs(NamedTuple):
    """The log-probabilities of one token: its own, then those that its request wants.

    Attributes:
        ids: int32 [count]; values: fp32 [count].
        rank: of the token, 1 for the most likely one.
    """

    ids: torch.Tensor
    values: torch.Tensor
    rank: int


def logprobs_table(tokens: Sequence[Sequence[TokenLogprobs | None]]) -> LogprobsLists | None:
    """What vLLM is given of a step: the tokens of each request in order, as many columns as the widest has.

    What is beyond a token's own columns, and of a token that has none, is not read.
    """
    flat = [found for own in tokens for found in own]
    width = max((len(found.ids) for found in flat if found is not None), default=0)
    if not width:
        return None
    table = LogprobsLists(
        np.zeros((len(flat), width), np.int32),
        np.full((len(flat), width), -np.inf, np.float32),
        np.zeros(len(flat), np.int64),
        np.cumsum([0, *map(len, tokens)]).tolist(),
    )
    for i, found in enumerate(flat):
        if found is not None:
            table.logprob_token_ids[i, : len(found.ids)] = found.ids
            table.logprobs[i, : len(found.ids)] = found.values
            table.sampled_token_ranks[i] = found.rank
    return table


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
        """Whether the request's thinking budget may decide one of the tokens that its step gives."""
        return self._budget.may_be_due(state.params, state.prompt, state.output, 1 + len(state.drafts))

    def sees_no_history(self, state: RequestState) -> bool:
        """Whether each token that its step gives is sampled alike, whatever the ones before it in that step are."""
        params = state.params
        return not (
            self.has_custom_processors
            or params.num_logprobs is not None
            or params.repetition_penalty != 1.0
            or params.frequency_penalty != 0.0
            or params.presence_penalty != 0.0
            or params.bad_words_token_ids
            or params.min_tokens > len(state.output)
            or self.ends_reasoning(state)
        )

    def warm_up(self) -> None:
        """Compile what draws, so that no request waits for it."""
        draw(torch.zeros(2, 2), [None, Sampling(1.0, 0.5)])

    def sample(
        self,
        rows: Sequence[RequestState],
        logits: torch.Tensor,
        masks: Mapping[int, np.ndarray],
        places: Sequence[int] | None = None,
    ) -> tuple[list[int], dict[int, TokenLogprobs]]:
        """Sample one token a row.

        Args:
            rows: the requests, in the order of the logits.
            logits: fp32 [len(rows), vocab], overwritten.
            masks: by row, what its grammar allows next: int32 [vocab / 32].
            places: of each row, tokens of its request that come before this one in the same step and have not been
                given yet, for requests of which `sees_no_history` holds; 0 for all others.

        Returns:
            One token id a row, and by row the log-probabilities if it wants any.
        """
        apply_grammar(logits, masks)
        scores: dict[int, torch.Tensor] = {}
        if self.has_custom_processors:
            tokens, every = self.vllm.sample(rows, logits)
            scores = {} if every is None else dict(enumerate(every.split(1)))
        else:
            tokens = self._draw(rows, logits, places or [0] * len(rows), scores)
        found = {
            i: self._logprobs(rows[i].params, score, tokens[i])
            for i, score in scores.items()
            if rows[i].params.num_logprobs is not None
        }
        return tokens, found

    def _draw(
        self,
        rows: Sequence[RequestState],
        logits: torch.Tensor,
        places: Sequence[int],
        scores: dict[int, torch.Tensor],
    ) -> list[int]:
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
            how = [draw_of(rows[i], self.vocab_size, place=places[i]) for i in own]
            drawn = draw(logits if len(own) == len(rows) else logits[own], how)
            for i, token in zip(own, drawn, strict=True):
                tokens[i] = token
        return tokens

    def _logprobs(self, params: SamplingParams, scores: torch.Tensor, token: int) -> TokenLogprobs:
        """A token's own, then those of the tokens that its request names, or else of the most likely ones.

        Args:
            scores: fp32 [1, vocab], what the request is to see.
        """
        named = params.logprob_token_ids
        count = 0 if named else self.vocab_size if params.logprobs == -1 else params.logprobs or 0
        ids, values, rank, *_ = self.sampler.gather_logprobs(scores, count, torch.tensor([token]))
        if named:
            wanted = torch.tensor([named], dtype=ids.dtype)
            ids, values = torch.cat((ids, wanted), 1), torch.cat((values, scores[:, named]), 1)
        return TokenLogprobs(ids[0], values[0], int(rank[0]))


def grammar_masks(states: Sequence[RequestState], grammar: GrammarOutput | None) -> dict[str, np.ndarray]:
    """By request, what its grammar allows at each place of its step: int32 [1 + scheduled drafts, vocab / 32].

    The bitmask has the rows of one request after the other, in the order of the grammar's request ids, which is not
    that of the step.
    """
    if grammar is None:
        return {}
    rows = {state.request_id: 1 + state.scheduled_drafts for state in states}
    masks, at = {}, 0
    for request_id in grammar.structured_output_request_ids:
        masks[request_id] = grammar.grammar_bitmask[at : at + rows[request_id]]
        at += rows[request_id]
    return masks


def apply_grammar(logits: torch.Tensor, masks: Mapping[int, np.ndarray]) -> None:
    """Forbid, in place, what the grammars of some rows do not allow next; masks: int32 [vocab / 32] by row."""
    if masks:
        indices = list(masks)
        bitmask = torch.from_numpy(np.stack([masks[i] for i in indices]))
        full = torch.full((len(logits), bitmask.shape[1]), -1, dtype=torch.int32)
        full[indices] = bitmask
        xgrammar.apply_token_bitmask_inplace(logits, full, indices=indices)
