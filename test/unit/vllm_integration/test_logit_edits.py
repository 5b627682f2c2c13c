"""What a request changes in its logits: to the bit what vLLM's sampler makes of them, however its output came about."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from vllm_integration.requests import RequestState
from vllm_integration.vllm_sampler import VllmSampler

VOCAB = 300
CONFIG = SimpleNamespace(
    model_config=SimpleNamespace(logprobs_mode="raw_logprobs", logits_processors=None),
    scheduler_config=SimpleNamespace(max_num_seqs=16),
    speculative_config=None,
    reasoning_config=None,
)
ASKED = [
    {},
    {"presence_penalty": 1.5},
    {"frequency_penalty": -0.7},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "presence_penalty": -2.0, "frequency_penalty": 0.3},
    {"logit_bias": {3: 50.0, 299: -100.0}, "presence_penalty": 0.1},
    {"min_tokens": 3, "stop_token_ids": [0, 8]},
    {"allowed_token_ids": [5, 2, 290], "repetition_penalty": 2.0},
    {"bad_words": [[7], [1, 2], [3, 4, 5]]},
]


def request(index: int, prompt: list[int]) -> RequestState:
    asked = dict(ASKED[index])
    bad_words = asked.pop("bad_words", None)
    params = SamplingParams(**asked)
    params._bad_words_token_ids = bad_words
    return RequestState(str(index), params, prompt)


def by_vllm(states: list[RequestState], logits: torch.Tensor) -> torch.Tensor:
    """A sampler that has seen none of the steps before."""
    other = VllmSampler(CONFIG, VOCAB)
    change = other.rows.update(states)
    for processor in other.processors.all:
        processor.update_state(change)
    return other.sampler.apply_logits_processors(logits.clone(), other.metadata(states), False)


def logits_of(seed: int) -> torch.Tensor:
    return 5 * torch.randn(len(ASKED), VOCAB, generator=torch.Generator().manual_seed(seed))


def check(states: list[RequestState], seed: int) -> None:
    logits = logits_of(seed)
    expected = by_vllm(states, logits)
    for row, state in zip(logits, states, strict=True):
        state.edit(row)
    assert torch.equal(logits, expected)


def test_the_bits_of_vllm_step_after_step_and_after_preemption() -> None:
    rng = random.Random(3)
    states = [request(i, [rng.randrange(12) for _ in range(rng.choice([1, 5, 40]))]) for i in range(len(ASKED))]
    for step in range(8):
        check(states, step)
        for state in states:
            state.output.extend(rng.randrange(12) for _ in range(rng.choice([1, 1, 3])))
    for state in states:
        kept = [rng.randrange(12) for _ in range(rng.choice([0, 2, len(state.output)]))]
        output = state.output
        state.refill(kept)
        assert state.output is output, "logits processors hold the list"
    for step in range(8, 12):
        check(states, step)
        for state in states:
            state.output.append(rng.randrange(12))


@pytest.mark.parametrize(("free", "kept"), [([], [0, 8]), ([77], [])])
def test_a_grammar_that_allows_the_end_alone_may_end(free: list[int], kept: list[int]) -> None:
    """`min_tokens` holds the end off, unless nothing else is left."""
    params = SamplingParams(min_tokens=3, stop_token_ids=[0, 8], structured_outputs=StructuredOutputsParams(regex="a"))
    state = RequestState("a", params, [1])
    logits = torch.full((VOCAB,), -torch.inf)
    logits[[0, 8, *free]] = 1.0
    expected = by_vllm([state], logits[None])[0]
    state.edit(logits)
    assert torch.equal(logits, expected)
    assert logits.isfinite().nonzero().flatten().tolist() == kept + free
