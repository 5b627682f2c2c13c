"""One sequence generated offline, without an engine: the shortest way from a prompt to text on any runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ..config import BLOCK_SIZE
from ..errors import ConfigError
from ..step import Output, Row, Runtime, Sampling, Step
from .choose import draw

LANE = 1


@dataclass(frozen=True, slots=True)
class Generation:
    """How to choose tokens and when to stop.

    Attributes:
        max_tokens: tokens to generate at most.
        stop_tokens: ids that end the text; the one met is not given out.
        temperature: 0 takes the most likely token; otherwise logits are divided by it and sampled.
        top_p: smallest set of most likely tokens with this total probability is sampled from.
        seed: of the sampling.
    """

    max_tokens: int = 128
    stop_tokens: tuple[int, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError("max_tokens", self.max_tokens, "must be at least 1", "Raise it")
        if self.temperature < 0:
            raise ConfigError(
                "temperature", self.temperature, "must not be negative", "Use 0 for the most likely token"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError("top_p", self.top_p, "must be above 0 and at most 1", "Use 1 to sample from all tokens")


def generate(
    runtime: Runtime, prompt: Sequence[int], how: Generation, before_step: Callable[[], None] | None = None
) -> Iterator[int]:
    """Give out the tokens that continue `prompt`, as they come. The runtime's first lane and blocks are used.

    Args:
        before_step: called before every step, as `ThreadGovernor.before_step` is to be.
    Raises:
        ConfigError: the prompt is empty or leaves no room for a token.
    """
    capacity = runtime.capacity
    if not prompt:
        raise ConfigError("prompt", "", "holds no tokens", "Give at least one")
    if len(prompt) >= capacity.max_model_len:
        raise ConfigError(
            "prompt",
            f"{len(prompt)} tokens",
            f"max_model_len is {capacity.max_model_len}",
            "Shorten it or raise the limit",
        )
    random = torch.Generator().manual_seed(how.seed)
    end = min(len(prompt) + how.max_tokens, capacity.max_model_len)
    blocks = range(1, 1 + -(-end // BLOCK_SIZE))
    wanted = Output.LOGITS if how.temperature else Output.TOKEN
    pending, start = list(prompt), 0
    try:
        for _ in range(end - len(prompt)):  # the last token is given out and not run: nothing follows it
            while pending:
                chunk = pending[: capacity.max_step_tokens]
                pending = pending[len(chunk) :]
                output = Output.NOTHING if pending else wanted
                if before_step is not None:
                    before_step()
                result = runtime.run(Step((Row("generate", LANE, chunk, start, blocks, output=output),))).rows[0]
                start += len(chunk)
            token = result.tokens[0] if result.logits is None else _drawn(result.logits, how, random)
            if token in how.stop_tokens:
                return
            yield token
            pending = [token]
    finally:
        runtime.run(Step((), released_lanes=(LANE,)))


def _drawn(logits: torch.Tensor, how: Generation, random: torch.Generator) -> int:
    """Draw from softmax(logits / temperature) cut to the top_p most likely mass. logits: fp32 [1, vocab]."""
    uniform = float(torch.rand(1, generator=random))
    return draw(logits, [Sampling(how.temperature, uniform, top_p=how.top_p)])[0]
