"""What a request asks to be changed in its logits before a token is drawn: in place, and only where it is changed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from vllm.sampling_params import SamplingParams

from qwen36_neuron.ops.sampling.penalties import Array, TokenCounts, penalise


class LogitEdits:
    """The changes of one request, in vLLM's order; what they need is prepared and counted once.

    Allowed tokens, bad words, `min_tokens`, logit bias, then penalties, of which repetition looks at the prompt and the
    output and the other two at the output alone.
    """

    def __init__(self, params: SamplingParams, prompt: list[int], output: list[int]) -> None:
        """`output` is the request's own list, which grows. If it is refilled, make a new object."""
        self._output = output
        self._allowed = None if params.allowed_token_ids is None else _ids(params.allowed_token_ids)
        self._bad_words: list[list[int]] = params.bad_words_token_ids or []
        self._min_tokens, self._stops = params.min_tokens, _ids(params.all_stop_token_ids)
        self._has_grammar = params.structured_outputs is not None
        bias = params.logit_bias or {}
        self._biased, self._bias = _ids(bias), np.fromiter(bias.values(), np.float32, len(bias))
        self._penalties = params.repetition_penalty, params.frequency_penalty, params.presence_penalty
        self._counts: TokenCounts | None = None
        if self._penalties != (1.0, 0.0, 0.0):
            self._counts = TokenCounts(prompt if params.repetition_penalty != 1.0 else ())
        self._counted = 0

    def apply(self, logits: Array) -> None:
        """Change logits, fp32 [vocab], in place."""
        if self._allowed is not None:
            kept = logits[self._allowed]
            logits.fill(-np.inf)
            logits[self._allowed] = kept
        for word in self._bad_words:
            if self._ends_with(word[:-1]):
                logits[word[-1]] = -np.inf
        if len(self._output) < self._min_tokens:
            self._hold_off(logits)
        if len(self._biased):
            logits[self._biased] += self._bias
        if self._counts is not None:
            self._counts.add(self._output[self._counted :])
            self._counted = len(self._output)
            penalise(logits, self._counts, *self._penalties)

    def _ends_with(self, words: list[int]) -> bool:
        return not words or self._output[-len(words) :] == words

    def _hold_off(self, logits: Array) -> None:
        """Forbid the tokens that end the request, unless its grammar allows nothing else."""
        kept = logits[self._stops]
        logits[self._stops] = -np.inf
        if self._has_grammar and np.isneginf(logits).all():
            logits[self._stops] = kept


def _ids(tokens: Iterable[int]) -> Array:
    return np.fromiter(tokens, np.int64)
