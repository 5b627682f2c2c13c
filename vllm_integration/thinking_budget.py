"""`thinking_token_budget`: the most tokens that a request may think."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class ThinkingBudget(LogitsProcessor):
    """Ends reasoning that is open in the prompt and goes on beyond the request's budget.

    The tokens that end them are those of `--reasoning-config`'s `reasoning_end_str`, by default `</think>` alone. They
    are the next ones after exactly as many generated tokens as the budget allows, so what is due follows from the
    tokens alone and a request that was preempted or moved goes on as it was.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        config = vllm_config.reasoning_config
        self._start = list(config.reasoning_start_token_ids or ()) if config else []
        self._forced = list(config.reasoning_end_token_ids or ()) if config else []
        self._end = list(config.natural_reasoning_end_token_ids or ()) if config else []
        self._rows: dict[int, tuple[SamplingParams, Sequence[int], Sequence[int]]] = {}

    def due(self, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> int | None:
        """The token that has to come next, if one has to."""
        if params.thinking_token_budget is None:
            return None
        late = len(output) - params.thinking_token_budget
        if not 0 <= late < len(self._forced):
            return None
        if _last(prompt, self._start) <= _last(prompt, self._end) or _last(output, self._end) >= 0:
            return None
        return self._forced[late]

    def may_be_due(self, params: SamplingParams, prompt: Sequence[int], output: Sequence[int], count: int) -> bool:
        """Whether one of the next `count` tokens may have to be a certain one, whatever they are."""
        if params.thinking_token_budget is None:
            return False
        late = len(output) - params.thinking_token_budget
        if not -count < late < len(self._forced):
            return False
        return _last(prompt, self._start) > _last(prompt, self._end) and _last(output, self._end) < 0

    def is_argmax_invariant(self) -> bool:
        """No: it decides the token."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow which request is in which row."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, params, prompt, output in batch_update.added:
            self._rows.pop(row, None)
            if params.thinking_token_budget is not None:
                self._rows[row] = (params, prompt or (), output)
        for source, target, direction in batch_update.moved:
            moved, replaced = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if replaced is not None and direction is MoveDirectionality.SWAP:
                self._rows[source] = replaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """`force` for every row that has a budget."""
        for row, (params, prompt, output) in self._rows.items():
            self.force(logits[row], params, prompt, output)
        return logits

    def force(self, logits: torch.Tensor, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> None:
        """Leave one request its due token alone, unless a grammar or its own token lists forbid it.

        Args:
            logits: fp32 [vocab], changed in place.
        """
        token = self.due(params, prompt, output)
        if token is not None and logits[token] > -torch.inf:
            score = logits[token].clone()
            logits.fill_(-torch.inf)
            logits[token] = score


def _last(token_ids: Sequence[int], pattern: Sequence[int]) -> int:
    """Where `pattern` last begins; -1 if nowhere."""
    for i in range(len(token_ids) - len(pattern), -1, -1):
        if pattern and token_ids[i] == pattern[0] and list(token_ids[i : i + len(pattern)]) == list(pattern):
            return i
    return -1
