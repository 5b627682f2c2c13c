"""An answer longer than what fits is cut, or refused with the true numbers."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def counting(engine):
    return engine.count()


def chat(size: int) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "x" * size}]}


CASES = [
    ("/v1/chat/completions", "max_tokens", chat(60)),
    ("/v1/chat/completions", "max_completion_tokens", chat(60)),
    ("/v1/completions", "max_tokens", {"prompt": "x" * 60}),
    ("/v1/completions", "max_tokens", {"prompt": [7] * 60}),
    ("/v1/completions", "max_tokens", {"prompt": ["x" * 10, "x" * 60]}),
    ("/v1/completions", "max_tokens", {"prompt": [[7] * 60, [7]]}),
    ("/v1/messages", "max_tokens", chat(60)),
]


@pytest.mark.parametrize(("path", "field", "body"), CASES)
@pytest.mark.parametrize("asked", [40, 41, 1000])
async def test_an_answer_is_cut_to_what_fits(counting, make, path, field, body, asked):
    stack = await make()
    response = await stack.client.post(path, json={"model": "tiny", "temperature": 0, **body, field: asked})
    assert response.status_code == 200
    assert response.json()[field] == 40


@pytest.mark.parametrize(("path", "field", "body"), CASES)
async def test_a_refusal_gives_the_true_numbers(counting, make, path, field, body):
    stack = await make(cut_max_tokens=False)
    fits = await stack.client.post(path, json={"model": "tiny", **body, field: 40})
    assert fits.status_code == 200
    response = await stack.client.post(path, json={"model": "tiny", **body, field: 41})
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert field in message
    for number in ("41", "60 tokens", "100", "at most 40"):
        assert number in message


@pytest.mark.parametrize("size", [100, 300])
@pytest.mark.parametrize("cut", [True, False])
async def test_a_prompt_that_leaves_no_room_is_refused(counting, make, size, cut):
    stack = await make(cut_max_tokens=cut)
    response = await stack.client.post("/v1/chat/completions", json={**chat(size), "max_tokens": 5})
    assert response.status_code == 400
    assert f"The prompt has {size} tokens" in response.json()["error"]["message"]


async def test_one_token_of_room_is_room(counting, make):
    stack = await make()
    assert (await stack.client.post("/v1/chat/completions", json={**chat(99), "max_tokens": 5})).json()[
        "max_tokens"
    ] == 1


async def test_a_completion_that_does_not_say_asks_for_16(counting, make):
    stack = await make()

    async def as_vllm(body, receive, send, inner=counting.answer):
        await inner({"max_tokens": 16, **body}, receive, send)

    counting.answer = as_vllm
    assert (await stack.client.post("/v1/completions", json={"prompt": "x" * 90})).json()["max_tokens"] == 10


async def test_responses_are_cut_by_leaving_the_length_open(counting, make):
    stack = await make()
    response = await stack.client.post("/v1/responses", json={"input": "x" * 60, "max_output_tokens": 1000})
    assert response.json()["max_output_tokens"] is None


async def test_the_count_renders_what_the_request_renders(counting, make):
    stack = await make(enable_thinking=False)
    extra = {"tools": [{"type": "function", "function": {"name": "f"}}], "reasoning_effort": "none"}
    await stack.client.post("/v1/chat/completions", json={**chat(60), **extra, "max_tokens": 1000, "temperature": 0})
    sent = [json.loads(raw) for raw in counting.completions]
    assert counting.paths == ["/v1/chat/completions", "/tokenize", "/v1/chat/completions"]
    assert sent[1]["tools"] == extra["tools"]
    assert sent[1]["chat_template_kwargs"] == {"reasoning_effort": "none", "enable_thinking": False}
    assert "max_tokens" not in sent[1]


async def test_what_is_rendered_is_cut_as_it_would_run(counting, make):
    stack = await make()
    run, rendered = [
        (await stack.client.post(route, json={**chat(60), "max_tokens": 1000})).json()["max_tokens"]
        for route in ("/v1/chat/completions", "/v1/chat/completions/render")
    ]
    assert rendered == run == 40
    refused = await stack.client.post("/v1/chat/completions/render", json={**chat(100), "max_tokens": 1000})
    assert refused.status_code == 400
    assert "Shorten it" in refused.json()["error"]["message"]


@pytest.mark.parametrize("message", ["temperature must be in [0, 2]", "maximum fun"])
async def test_other_refusals_are_passed_on_untried(engine, make, message):
    async def answer(body, receive, send):
        await engine.start(send, 400, b"application/json")
        await engine.piece(send, json.dumps({"error": {"message": message, "code": 400}}).encode(), more=False)

    engine.answer = answer
    stack = await make()
    response = await stack.client.post("/v1/chat/completions", json={**chat(60), "max_tokens": 1000})
    assert response.json()["error"]["message"] == message
    assert engine.paths == ["/v1/chat/completions"]
