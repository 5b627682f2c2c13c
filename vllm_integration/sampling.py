"""Sampling on the host: vLLM's own sampler on the rows that need more than the most likely token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xgrammar
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import make_tensor_with_pad
from vllm.v1.core.sched.output import GrammarOutput
from vllm.v1.outputs import LogprobsLists, LogprobsTensors
from vllm.v1.sample.logits_processor import build_logitsprocs
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from qwen36_neuron.runtime import Output, Sampling

from .batch import SampledRows
from .requests import RequestState

GREEDY_BELOW = 1e-5
"""A lower temperature means the most likely token; the limit that vLLM's sampler uses."""


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
    request without a seed takes it from the process's. Tokens differ from those that the host's sampler gives for the
    same seed, their distribution does not.

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
    uniform = float(torch.rand(1, generator=state.generator))
    return Output.TOKEN, Sampling(params.temperature, uniform, top_k, params.top_p, params.min_p)


class HostSampler:
    """Turns logits into tokens as the requests ask. One call a step, rows in any order, each request once."""

    def __init__(self, vllm_config: VllmConfig, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.sampler = Sampler(logprobs_mode=vllm_config.model_config.logprobs_mode)
        custom = tuple(vllm_config.model_config.logits_processors or ())
        self.has_custom_processors = bool(custom)
        self._processors = build_logitsprocs(vllm_config, torch.device("cpu"), False, False, custom)
        self._rows = SampledRows()

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
        update = self._rows.update(rows)
        for processor in self._processors.all:
            processor.update_state(update)
        place = {id(state): i for i, state in enumerate(rows)}
        order = [place[id(state)] for state in self._rows.states]
        if order != list(range(len(rows))):
            logits = logits[order]
        sampled, table = self._sample(self._rows.states, logits)
        back = torch.tensor(order).argsort()
        logprobs = None if table is None else LogprobsTensors(*(column[back] for column in table[:3])).tolists()
        return sampled[back].tolist(), logprobs

    def _sample(
        self, rows: Sequence[RequestState], logits: torch.Tensor
    ) -> tuple[torch.Tensor, LogprobsTensors | None]:
        """The same in the order in which the processors keep their state. Token ids are int64 [rows]."""
        output = self.sampler(logits, self._metadata(rows))
        sampled, scores = output.sampled_token_ids[:, 0].long(), output.logprobs_tensors
        return sampled, None if scores is None else self._logprobs(rows, scores.logprobs, sampled)

    def _logprobs(self, rows: Sequence[RequestState], scores: torch.Tensor, sampled: torch.Tensor) -> LogprobsTensors:
        """Of every row the sampled token, then the tokens that its request names, or else the most likely ones.

        vLLM's sampler gives the whole batch the named tokens of one request. A row has as many columns as the widest;
        what is beyond its own number is not read.

        Args:
            scores: [rows, vocab], what the requests are to see.
            sampled: int64 [rows].
        """
        named = {i: ids for i, state in enumerate(rows) if (ids := state.params.logprob_token_ids)}
        best = max((self._count(state.params) for i, state in enumerate(rows) if i not in named), default=0)
        table = self.sampler.gather_logprobs(scores, best, sampled)
        width = max((len(ids) for ids in named.values()), default=0)
        extra = (0, max(0, width - best))
        ids = torch.nn.functional.pad(table.logprob_token_ids, extra)
        values = torch.nn.functional.pad(table.logprobs, extra, value=-torch.inf)
        for i, wanted in named.items():
            columns = slice(1, 1 + len(wanted))
            ids[i, columns] = torch.tensor(wanted, dtype=ids.dtype)
            values[i, columns] = scores[i, wanted]
        return LogprobsTensors(ids, values, table.selected_token_ranks)

    def _count(self, params: SamplingParams) -> int:
        """How many of the most likely tokens the request wants the log-probabilities of."""
        return self.vocab_size if params.logprobs == -1 else params.logprobs or 0

    def _metadata(self, rows: Sequence[RequestState]) -> SamplingMetadata:
        params = [state.params for state in rows]
        greedy = [p.temperature < GREEDY_BELOW for p in params]
        no_penalties = all(
            p.repetition_penalty == 1.0 and p.frequency_penalty == 0.0 and p.presence_penalty == 0.0 for p in params
        )
        top_k = [p.top_k if 0 < p.top_k < self.vocab_size else self.vocab_size for p in params]
        top_p = [p.top_p for p in params]
        wants_scores = any(p.num_logprobs is not None for p in params)
        return SamplingMetadata(
            temperature=None if all(greedy) else torch.tensor([p.temperature for p in params]),
            all_greedy=all(greedy),
            all_random=not any(greedy),
            top_p=torch.tensor(top_p) if min(top_p) < 1.0 else None,
            top_k=torch.tensor(top_k, dtype=torch.int32) if min(top_k) < self.vocab_size else None,
            generators={i: state.generator for i, state in enumerate(rows) if state.generator is not None},
            max_num_logprobs=-1 if wants_scores else None,  # all of them: what a row gets of them is not vLLM's choice
            no_penalties=no_penalties,
            prompt_token_ids=None if no_penalties else self._prompts(rows),
            frequency_penalties=torch.tensor([p.frequency_penalty for p in params]),
            presence_penalties=torch.tensor([p.presence_penalty for p in params]),
            repetition_penalties=torch.tensor([p.repetition_penalty for p in params]),
            output_token_ids=[state.output for state in rows],
            allowed_token_ids_mask=self._forbidden(params),
            bad_words_token_ids={i: p.bad_words_token_ids for i, p in enumerate(params) if p.bad_words_token_ids},
            logitsprocs=self._processors,
        )

    def _prompts(self, rows: Sequence[RequestState]) -> torch.Tensor:
        return make_tensor_with_pad(
            [state.prompt for state in rows], pad=self.vocab_size, dtype=torch.int64, device="cpu"
        )

    def _forbidden(self, params: Sequence[SamplingParams]) -> torch.Tensor | None:
        """[rows, vocab], true where a token may not be sampled; None if no row restricts its tokens."""
        if all(p.allowed_token_ids is None for p in params):
            return None
        mask = torch.zeros(len(params), self.vocab_size, dtype=torch.bool)
        for i, p in enumerate(params):
            if p.allowed_token_ids is not None:
                mask[i] = True
                mask[i, p.allowed_token_ids] = False
        return mask


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
