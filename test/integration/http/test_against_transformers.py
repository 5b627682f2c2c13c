"""What comes over HTTP is what Hugging Face transformers computes from the same checkpoint."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytestmark = pytest.mark.http

COUNT = 24
LENGTHS = (1, 5, 63, 64, 65, 130, 257, 600)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(1000) for _ in range(length)] for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(generate, prompts) -> list[list[int]]:
    return [generate(prompt, COUNT) for prompt in prompts]


@pytest.fixture(scope="module")
def logprobs(reference, prompts) -> torch.Tensor:
    """fp32 [tokens, vocabulary] after every token of the prompt of 65."""
    with torch.no_grad():
        logits = reference(torch.tensor([prompts[4]])).logits[0]
    return torch.log_softmax(logits.float(), dim=-1)


def test_greedy_tokens_one_request_at_a_time(server, prompts, expected):
    assert [server.tokens(prompt, max_tokens=COUNT) for prompt in prompts] == expected


def test_greedy_tokens_eight_at_once(server, prompts, expected):
    with ThreadPoolExecutor(len(prompts)) as pool:
        for _ in range(2):
            got = list(pool.map(lambda prompt: server.tokens(prompt, max_tokens=COUNT), prompts))
            assert got == expected


def test_greedy_tokens_of_several_prompts_in_one_request(server, prompts, expected):
    answer = server.complete(prompts, max_tokens=COUNT)
    assert [choice.token_ids for choice in sorted(answer.choices, key=lambda c: c.index)] == expected


def test_greedy_tokens_streamed(server, prompts, expected):
    got: list[int] = []
    for chunk in server.complete(prompts[5], max_tokens=COUNT, stream=True):
        got += chunk.choices[0].token_ids or []
    assert got == expected[5]


def test_greedy_tokens_of_a_chat(server, generate):
    answer = server.chat(temperature=0, max_tokens=COUNT, extra_body={"return_token_ids": True, "ignore_eos": True})
    assert list(answer.choices[0].token_ids) == generate(list(answer.prompt_token_ids), COUNT)


def test_repetition_penalty(server, generate, prompts):
    expected = generate(prompts[3], COUNT, repetition_penalty=1.7)
    assert server.tokens(prompts[3], max_tokens=COUNT, extra={"repetition_penalty": 1.7}) == expected


@pytest.mark.parametrize(("kind", "value"), [("presence_penalty", 1.9), ("frequency_penalty", 1.3)])
def test_presence_and_frequency_penalties(server, generate, prompts, kind, value):
    prompt = prompts[3]

    def subtract(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """OpenAI's definition, over the tokens generated so far."""
        counts = torch.bincount(ids[0, len(prompt) :], minlength=scores.shape[1])
        return scores - value * ((counts > 0) if kind == "presence_penalty" else counts)

    expected = generate(prompt, COUNT, logits_processor=[subtract])
    assert server.tokens(prompt, max_tokens=COUNT, **{kind: value}) == expected


def test_logprobs_of_the_generated_tokens(server, prompts, logprobs):
    answer = server.complete(prompts[4], max_tokens=1, logprobs=5, extra={"return_tokens_as_token_ids": True})
    (top,) = answer.choices[0].logprobs.top_logprobs
    values, ids = logprobs[-1].topk(5)
    assert {int(name.removeprefix("token_id:")) for name in top} == set(ids.tolist())
    for name, value in top.items():
        assert value == pytest.approx(float(logprobs[-1, int(name.removeprefix("token_id:"))]), abs=1e-3)
    assert answer.choices[0].logprobs.token_logprobs[0] == pytest.approx(float(values[0]), abs=1e-3)


def test_logprobs_of_the_prompt(server, prompts, logprobs):
    answer = server.complete(prompts[4], max_tokens=1, extra={"prompt_logprobs": 0})
    got = answer.choices[0].prompt_logprobs
    assert got[0] is None
    assert len(got) == len(prompts[4])
    for position, (token, entry) in enumerate(zip(prompts[4][1:], got[1:], strict=True)):
        assert entry[str(token)]["logprob"] == pytest.approx(float(logprobs[position, token]), abs=1e-3)
