"""vLLM's own sampler, for the requests that ask for what only it does."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import make_tensor_with_pad
from vllm.v1.sample.logits_processor import BUILTIN_LOGITS_PROCESSORS, build_logitsprocs
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from .batch import SampledRows
from .requests import RequestState
from .thinking_budget import ThinkingBudget

GREEDY_BELOW = 1e-5
"""A lower temperature means the most likely token; the limit that vLLM's sampler uses."""


class VllmSampler:
    """Logits processors of the user's, and log-probabilities as they are after processing (`logprobs_mode`).

    Without the user's processors a call takes one request, so that its log-probabilities depend on no other's
    parameters; with them it takes all, since a processor keeps its state by the rows of a batch.
    """

    def __init__(self, vllm_config: VllmConfig, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.sampler = Sampler(logprobs_mode=vllm_config.model_config.logprobs_mode)
        custom = tuple(vllm_config.model_config.logits_processors or ())
        plain = copy(vllm_config)
        plain.speculative_config = None  # vLLM's own worker samples all drafts at once, for which it leaves most out
        self.processors = build_logitsprocs(plain, torch.device("cpu"), False, False, (*custom, ThinkingBudget))
        self.rows = SampledRows()

    @property
    def has_custom_processors(self) -> bool:
        """Whether there are logits processors that are neither vLLM's nor ours: the user's, or a plugin's."""
        known = (*BUILTIN_LOGITS_PROCESSORS, ThinkingBudget)
        return any(type(processor) not in known for processor in self.processors.all)

    def sample(self, rows: Sequence[RequestState], logits: torch.Tensor) -> tuple[list[int], torch.Tensor | None]:
        """Sample one token a row.

        Args:
            rows: the requests, in the order of the logits.
            logits: fp32 [len(rows), vocab], overwritten.

        Returns:
            One token id a row, and, if any row wants log-probabilities, the scores they are taken from, [rows, vocab].
        """
        update = self.rows.update(rows)
        for processor in self.processors.all:
            processor.update_state(update)
        place = {id(state): i for i, state in enumerate(rows)}
        order = torch.tensor([place[id(state)] for state in self.rows.states])
        output = self.sampler(logits[order], self.metadata(self.rows.states))
        back, scores = order.argsort(), output.logprobs_tensors
        return output.sampled_token_ids[back, 0].tolist(), None if scores is None else scores.logprobs[back]

    def metadata(self, rows: Sequence[RequestState]) -> SamplingMetadata:
        """What vLLM's sampler is told of the requests, in the order of the processors' rows."""
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
            logitsprocs=self.processors,
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
