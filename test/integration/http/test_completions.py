"""Completions: every parameter does what it says, streamed and not, alone and among others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers import AutoTokenizer

pytestmark = pytest.mark.http

PROMPT = "The quick brown fox jumps over the lazy dog"
HOT = {"temperature": 2.0, "max_tokens": 24}


@pytest.fixture(scope="module")
def greedy(server) -> list[int]:
    return server.tokens(PROMPT, max_tokens=24)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


def test_the_model_is_listed(server):
    (model,) = server.client.models.list().data
    assert model.id == "tiny"
    assert model.max_model_len == 2048


def test_tokenize_and_back(server, tokenizer):
    ids = server.http.post("/tokenize", json={"model": "tiny", "prompt": PROMPT}).json()["tokens"]
    assert ids == tokenizer(PROMPT).input_ids
    assert server.http.post("/detokenize", json={"model": "tiny", "tokens": ids}).json()["prompt"] == PROMPT


@pytest.mark.parametrize(
    "narrow", [{"extra": {"top_k": 1}}, {"top_p": 1e-6}, {"extra": {"min_p": 1.0}}, {"temperature": 0}]
)
def test_sampling_from_one_candidate_is_greedy(server, greedy, narrow):
    assert server.tokens(PROMPT, **{**HOT, **narrow}) == greedy


def test_a_seed_gives_the_same_tokens_alone_and_among_others(server):
    alone = server.tokens(PROMPT, seed=5, **HOT)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda seed: server.tokens(PROMPT, seed=seed, **HOT), [5, 6, 7, 8, 5, 9, 10, 11]))
    assert together[0] == together[4] == alone
    assert len({tuple(tokens) for tokens in together}) == 7


def test_without_a_seed_samples_differ(server):
    assert server.tokens(PROMPT, **HOT) != server.tokens(PROMPT, **HOT)


def test_several_answers_to_one_prompt(server):
    answer = server.complete(PROMPT, n=3, seed=1, **HOT)
    assert sorted(choice.index for choice in answer.choices) == [0, 1, 2]
    assert len({tuple(choice.token_ids) for choice in answer.choices}) == 3
    assert answer.usage.completion_tokens == 3 * HOT["max_tokens"]


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 130])
def test_max_tokens_is_exact(server, count):
    answer = server.complete(PROMPT, max_tokens=count)
    assert len(answer.choices[0].token_ids) == answer.usage.completion_tokens == count
    assert answer.choices[0].finish_reason == "length"


def test_end_of_text_ends_and_min_tokens_holds_it_off(server, tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    eager = {"logit_bias": {str(end): 100}, "max_tokens": 20}
    answer = server.complete(PROMPT, extra={"ignore_eos": False}, **eager)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 1
    answer = server.complete(PROMPT, extra={"ignore_eos": False, "min_tokens": 7}, **eager)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 8


def test_logit_bias_and_allowed_tokens(server):
    assert server.tokens(PROMPT, max_tokens=5, logit_bias={"77": 100}) == [77] * 5
    allowed = {11, 22, 33}
    assert set(server.tokens(PROMPT, extra={"allowed_token_ids": sorted(allowed)}, **HOT)) <= allowed


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_before_it(server, stream):
    whole = server.complete(PROMPT, max_tokens=40).choices[0].text
    # Not at a token's edge: from within one token into the next.
    stop = whole[len(whole) // 2 : len(whole) // 2 + 5]
    expected = whole[: whole.index(stop)]
    if stream:
        chunks = list(server.complete(PROMPT, max_tokens=40, stop=[stop, "\0never"], stream=True))
        text = "".join(chunk.choices[0].text for chunk in chunks)
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        choice = server.complete(PROMPT, max_tokens=40, stop=stop).choices[0]
        text = choice.text
        assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
    assert text == expected


def test_stop_token_ids(server, greedy):
    stop = greedy[9]
    first = greedy.index(stop)
    answer = server.complete(PROMPT, max_tokens=24, extra={"stop_token_ids": [stop]})
    assert answer.choices[0].token_ids == greedy[: first + 1]
    assert answer.choices[0].finish_reason == "stop"


def test_a_stream_says_the_same_and_its_usage(server):
    whole = server.complete(PROMPT, max_tokens=50)
    chunks = list(server.complete(PROMPT, max_tokens=50, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert [token for chunk in chunks if chunk.choices for token in chunk.choices[0].token_ids] == list(
        whole.choices[0].token_ids
    )
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 50
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_a_stream_comes_as_it_is_made(server):
    """In many pieces, none of them most of the answer.

    How many depends on the machine: vLLM's server joins what an engine makes faster than it sends, and this one's
    tokens take less than a millisecond.
    """
    how = {"temperature": 1.0, "top_p": 0.95, "presence_penalty": 0.5, "frequency_penalty": 0.5, "seed": 3}
    chunks = list(server.complete(PROMPT, max_tokens=200, stream=True, **how))
    sizes = [len(chunk.choices[0].token_ids) for chunk in chunks]
    assert sum(sizes) == 200
    assert len(sizes) >= 8
    assert max(sizes) <= 100


def test_echo_gives_the_prompt_back(server):
    answer = server.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=2, temperature=0, echo=True)
    assert answer.choices[0].text == PROMPT + server.complete(PROMPT, max_tokens=2).choices[0].text


def test_more_requests_than_lanes_all_end(server, greedy):
    with ThreadPoolExecutor(24) as pool:
        got = list(pool.map(lambda _: server.tokens(PROMPT, max_tokens=24), range(24)))
    assert got == [greedy] * 24
    server.wait_idle()
