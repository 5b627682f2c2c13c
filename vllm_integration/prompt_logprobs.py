"""Log-probabilities of the prompt's own tokens, gathered chunk by chunk."""

from __future__ import annotations

import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.sampler import Sampler

from .requests import RequestState


class PromptLogprobs:
    """Fills the table that a request is owed, and hands it over with the request's first token."""

    def __init__(self, sampler: Sampler, vocab_size: int) -> None:
        self._sampler = sampler
        self._vocab_size = vocab_size

    def collect(self, state: RequestState, logits: torch.Tensor) -> LogprobsTensors | None:
        """Take the logits of one chunk.

        Args:
            state: the request, whose start .. end - 1 is the chunk.
            logits: fp32 [state.end - state.start, vocab], those after each token of the chunk.

        Returns:
            The table, [prompt length - 1, k + 1], once the chunk is the prompt's last; None before.
        """
        wanted = state.params.prompt_logprobs
        k = self._vocab_size if wanted == -1 else int(wanted or 0)
        table = state.prompt_logprobs
        if table is None:
            table = state.prompt_logprobs = LogprobsTensors.empty_cpu(len(state.prompt) - 1, k + 1)
        count = min(state.end, len(state.prompt) - 1) - state.start
        if count > 0:
            targets = torch.tensor(state.prompt[state.start + 1 : state.start + 1 + count])
            raw = logits[:count]
            scores = raw if self._sampler.logprobs_mode.endswith("logits") else self._sampler.compute_logprobs(raw)
            ids, values, ranks, *_ = self._sampler.gather_logprobs(scores, k, targets)
            rows = slice(state.start, state.start + count)
            table.logprob_token_ids[rows] = ids
            table.logprobs[rows] = values
            table.selected_token_ranks[rows] = ranks
        if not state.samples:
            return None
        state.owes_prompt_logprobs = False
        state.prompt_logprobs = None
        return table
