"""Penalties for what a sequence already holds, applied to those tokens alone.

A sequence holds a few hundred tokens of a vocabulary of 248,320. How often each occurs is counted as it is generated;
counting anew, in tables as wide as the vocabulary, is what makes penalties dear.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

Array = np.ndarray


class TokenCounts:
    """The tokens of one sequence, each once, and how often each was generated.

    Attributes:
        size: number of different tokens.
    """

    def __init__(self, prompt: Iterable[int] = ()) -> None:
        """Prompt tokens are among the tokens, generated 0 times. Leave them out where nothing depends on them."""
        self._places = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        self._tokens = np.fromiter(self._places, np.int64, len(self._places))
        self._times = np.zeros(len(self._places), np.float32)
        self.size = len(self._places)

    def add(self, generated: Iterable[int]) -> None:
        """Count tokens that were generated since the last call."""
        for token in generated:
            place = self._places.setdefault(token, self.size)
            if place == self.size:
                self._append(token)
            self._times[place] += 1

    def _append(self, token: int) -> None:
        if self.size == len(self._tokens):
            room = (0, max(16, self.size))
            self._tokens, self._times = np.pad(self._tokens, room), np.pad(self._times, room)
        self._tokens[self.size] = token
        self.size += 1

    @property
    def tokens(self) -> Array:
        """int64 [size]."""
        return self._tokens[: self.size]

    @property
    def times(self) -> Array:
        """fp32 [size]: how often each token was generated; a prompt's own occurrences do not count."""
        return self._times[: self.size]


def penalise(logits: Array, counts: TokenCounts, repetition: float, frequency: float, presence: float) -> None:
    """Lower, in place, the logits of tokens that occur, in fp32 and in vLLM's order of operations.

    With t the number of times that a token was generated: logit / repetition if it is positive, else
    logit * repetition, for every token of `counts`; then logit - frequency t; then logit - presence if t > 0.

    Args:
        logits: fp32 [vocab].
        counts: the sequence; with a repetition penalty other than 1 it must hold the prompt's tokens too.
        repetition: above 0, 1 for none.
        frequency, presence: 0 for none.
    """
    values, times = logits[counts.tokens], counts.times
    if repetition != 1.0:
        factor = np.float32(repetition)
        values *= np.where(values > 0, np.float32(1.0) / factor, factor)
    values -= np.float32(frequency) * times
    values -= np.float32(presence) * (times > 0)
    logits[counts.tokens] = values
