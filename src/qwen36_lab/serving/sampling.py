"""Both sides of the sampling benchmark: vLLM's own sampler, and ours, on the same logits and requests."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from vllm import SamplingParams

from vllm_integration.requests import RequestState
from vllm_integration.sampling import HostSampler

PUBLISHED = {"temperature": 0.7, "top_k": 20, "top_p": 0.8}
"""What the model's card recommends without thinking, which comes with a presence penalty of 1.5."""

MIXES: dict[str, dict[str, Any]] = {
    "presence penalty": {**PUBLISHED, "presence_penalty": 1.5},
    "frequency penalty": {**PUBLISHED, "frequency_penalty": 0.5},
    "repetition penalty": {**PUBLISHED, "repetition_penalty": 1.1},
    "logit bias": {**PUBLISHED, "logit_bias": dict.fromkeys(range(0, 3000, 10), 1.0)},
    "no penalty": PUBLISHED,
    "min-p alone": {"min_p": 0.05},
    "top-p alone": {"top_p": 0.95},
    "temperature alone": {},
    "greedy, presence penalty": {"temperature": 0.0, "presence_penalty": 1.5},
    "presence penalty, 5 logprobs": {**PUBLISHED, "presence_penalty": 1.5, "logprobs": 5},
}


@dataclass(frozen=True, slots=True)
class Workload:
    """What is sampled.

    Attributes:
        vocab: tokens of the vocabulary.
        prompt, output: tokens that each request holds before the first step.
        rounds: steps that are timed, each side in turn; one more comes first and is not.
    """

    vocab: int = 248_320
    prompt: int = 512
    output: int = 256
    rounds: int = 9


def compare(load: Workload, asked: dict[str, Any], batch: int) -> dict[str, Any]:
    """Milliseconds of a step of `batch` rows on either side, and the median of the rounds' own ratios.

    vLLM's side is its sampler's call alone; ours is all that replaces it, from the requests to the tokens.
    """
    sampler = _host_sampler(load.vocab, batch)
    sides = {"ours": _ours(sampler), "vllm": _vllm(sampler)}
    states = {name: _requests(load, asked, batch) for name in sides}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(load.rounds + 1):
        logits = 3 * torch.randn(batch, load.vocab, generator=torch.Generator().manual_seed(turn))
        for name in sorted(sides, reverse=turn % 2 == 1):
            own = logits.clone()
            started = time.perf_counter()
            tokens = sides[name](states[name], own)
            taken = time.perf_counter() - started
            if turn:
                seconds[name].append(taken)
            for state, token in zip(states[name], tokens, strict=True):
                state.give(token)
    ratios = [own / other for own, other in zip(seconds["ours"], seconds["vllm"], strict=True)]
    return {
        **{f"{name}_ms": 1000 * statistics.median(taken) for name, taken in seconds.items()},
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def _ours(sampler: HostSampler) -> Callable[[list[RequestState], torch.Tensor], list[int]]:
    return lambda states, logits: sampler.sample(states, logits, {})[0]


def _vllm(sampler: HostSampler) -> Callable[[list[RequestState], torch.Tensor], list[int]]:
    """With log-probabilities gathered by vLLM, as many as the requests want."""

    def sample(states: list[RequestState], logits: torch.Tensor) -> list[int]:
        update = sampler.vllm.rows.update(states)
        for processor in sampler.vllm.processors.all:
            processor.update_state(update)
        metadata = sampler.vllm.metadata(states)
        if metadata.max_num_logprobs is not None:
            metadata.max_num_logprobs = max(state.params.num_logprobs or 0 for state in states)
        return sampler.sampler(logits, metadata).sampled_token_ids[:, 0].tolist()

    return sample


def _host_sampler(vocab: int, batch: int) -> HostSampler:
    config: Any = SimpleNamespace(
        model_config=SimpleNamespace(logprobs_mode="raw_logprobs", logits_processors=None),
        scheduler_config=SimpleNamespace(max_num_seqs=batch),
        speculative_config=None,
        reasoning_config=None,
    )
    return HostSampler(config, vocab)


def _requests(load: Workload, asked: dict[str, Any], batch: int) -> list[RequestState]:
    rng = random.Random(batch)
    return [
        RequestState(
            str(row),
            SamplingParams(**asked),
            [rng.randrange(load.vocab) for _ in range(load.prompt)],
            [rng.randrange(load.vocab) for _ in range(load.output)],
        )
        for row in range(batch)
    ]
