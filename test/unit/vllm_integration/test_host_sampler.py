"""The host's sampler: a request's tokens and log-probabilities are its own, whoever is sampled beside it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from qwen36_neuron.ops.sampling import sample_all
from qwen36_neuron.runtime import choose
from qwen36_neuron.runtime.choose import parameter_tensor
from vllm_integration.requests import RequestState
from vllm_integration.sampling import HostSampler, draw_of, logprobs_table

VOCAB, STEPS = 512, 6
PROMPT = [1, 2, 3, 2, 400]
ASKED: list[dict[str, Any]] = [
    {"seed": 1, "presence_penalty": 1.5, "top_k": 20, "top_p": 0.8},
    {"seed": 1},
    {"seed": 2, "temperature": 2.0, "repetition_penalty": 1.4, "min_p": 0.1, "logprobs": 4},
    {"temperature": 0.0, "frequency_penalty": 2.0, "logprobs": 0},
    {"temperature": 0.0, "logprob_token_ids": [9, 3, 500]},
    {"seed": 3, "logit_bias": {7: 4.0}, "top_k": 600, "logprobs": -1},
    {"temperature": 0.0, "allowed_token_ids": [4, 44]},
    {"seed": 4, "structured_outputs": StructuredOutputsParams(regex="a"), "logprobs": 1},
]


START, END = 90, 91
REASONING = SimpleNamespace(
    reasoning_start_token_ids=[START], reasoning_end_token_ids=[END], natural_reasoning_end_token_ids=[END]
)


def host_sampler(mode: str = "raw_logprobs") -> HostSampler:
    config = SimpleNamespace(
        model_config=SimpleNamespace(logprobs_mode=mode, logits_processors=None),
        scheduler_config=SimpleNamespace(max_num_seqs=16),
        reasoning_config=REASONING,
        speculative_config=None,
    )
    return HostSampler(config, VOCAB)


def requests(*indices: int) -> list[RequestState]:
    states = [RequestState(str(i), SamplingParams(**ASKED[i]), PROMPT) for i in indices]
    for state in states:
        if state.params.seed is not None:
            state.generator = torch.Generator().manual_seed(state.params.seed)
    return states


def logits_of(request_id: str, step: int) -> torch.Tensor:
    """With equal ones among them."""
    seed = 1000 * int(request_id) + step
    return (3 * torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed))).bfloat16().float()


def masks_of(states: Sequence[RequestState]) -> dict[int, np.ndarray]:
    """Of those with a grammar: tokens 32 to 63 are allowed."""
    mask = np.zeros(VOCAB // 32, np.int32)
    mask[1] = -1
    return {i: mask for i, state in enumerate(states) if state.params.structured_outputs is not None}


def run(sampler: HostSampler, states: list[RequestState]) -> dict[str, list[Any]]:
    """What every request is given, step by step: the token, and its log-probabilities if it wants any."""
    found: dict[str, list[Any]] = {state.request_id: [] for state in states}
    for step in range(STEPS):
        order = states[step % len(states) :] + states[: step % len(states)]
        logits = torch.cat([logits_of(state.request_id, step) for state in order])
        tokens, scores = sampler.sample(order, logits, masks_of(order))
        table = logprobs_table([[scores.get(i)] for i in range(len(order))])
        for i, (state, token) in enumerate(zip(order, tokens, strict=True)):
            state.give(token)
            wanted = state.params.num_logprobs
            entry: tuple[Any, ...] = (token,)
            if wanted is not None:
                assert table is not None
                count = 1 + (VOCAB if wanted == -1 else wanted)
                entry += (table.logprob_token_ids[i, :count].tolist(), table.logprobs[i, :count].tolist())
                entry += (int(table.sampled_token_ranks[i]),)
            found[state.request_id].append(entry)
    return found


@pytest.mark.parametrize("mode", ["raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits"])
def test_alone_as_among_others(mode: str) -> None:
    together = run(host_sampler(mode), requests(*range(len(ASKED))))
    for i in range(len(ASKED)):
        assert run(host_sampler(mode), requests(i))[str(i)] == together[str(i)], ASKED[i]


def test_log_probabilities_are_those_of_the_raw_logits_and_of_the_grammar() -> None:
    found = run(host_sampler(), requests(*range(len(ASKED))))
    for i, asked in enumerate(ASKED):
        for step, (token, *table) in enumerate(found[str(i)]):
            if not table:
                continue
            ids, values, rank = table
            logits = logits_of(str(i), step)[0]
            if "structured_outputs" in asked:
                logits[:32], logits[64:] = -torch.inf, -torch.inf
            expected = logits.log_softmax(-1)
            assert ids[0] == token
            assert values == expected[ids].tolist()
            assert rank == int((expected >= expected[token]).sum())
            if "logprob_token_ids" in asked:
                assert ids[1:] == asked["logprob_token_ids"]
            else:
                assert values[1:] == expected.sort(descending=True).values[: len(ids) - 1].tolist()


def test_drawn_by_the_definition_with_the_requests_own_numbers() -> None:
    found = run(host_sampler(), requests(0, 2, 3, 7))
    for state in requests(0, 2, 3, 7):
        for step in range(STEPS):
            logits = logits_of(state.request_id, step)
            if state.params.structured_outputs is not None:
                logits[:, :32], logits[:, 64:] = -torch.inf, -torch.inf
            state.edit(logits[0])
            token = int(sample_all(logits, parameter_tensor([draw_of(state, VOCAB)])))
            assert found[state.request_id][step][0] == token
            state.give(token)


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
def test_a_thinking_budget_ends_the_thoughts_of_its_request_alone(mode: str) -> None:
    options: list[dict[str, Any]] = [{"thinking_token_budget": 2}, {"thinking_token_budget": 2, "logprobs": 1}, {}]
    states = [
        RequestState(str(i), SamplingParams(temperature=0.0, **asked), [5, START]) for i, asked in enumerate(options)
    ]
    sampler = host_sampler(mode)
    found = run(sampler, states)
    for i in (0, 1):
        tokens = [entry[0] for entry in found[str(i)]]
        assert tokens.index(END) == 2
        assert tokens.count(END) == 1
    assert END not in [entry[0] for entry in found["2"]]


def test_without_numba_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = run(host_sampler(), requests(*range(len(ASKED))))
    monkeypatch.setattr(choose, "_best_form", lambda: sample_all)
    assert run(host_sampler(), requests(*range(len(ASKED)))) == compiled


def test_requests_without_a_seed_take_the_processs_numbers() -> None:
    states = [RequestState(str(i), SamplingParams(presence_penalty=1.0), PROMPT) for i in range(2)]
    torch.manual_seed(5)
    first = run(host_sampler(), states)
    again = [RequestState(str(i), SamplingParams(presence_penalty=1.0), PROMPT) for i in range(2)]
    torch.manual_seed(5)
    assert run(host_sampler(), again) == first
    assert run(host_sampler(), [RequestState("0", SamplingParams(), PROMPT)]) != {"0": first["0"]}
