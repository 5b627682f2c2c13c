"""The routes of agents, keys as Anthropic's clients send them, errors in their form, and pages of other origins."""

from __future__ import annotations

import pytest

from vllm_integration.chat_proxy.defaults import NON_THINKING, THINKING

AGENTS = ("/v1/responses", "/v1/messages")


@pytest.mark.parametrize("path", AGENTS)
@pytest.mark.parametrize("thinks", [True, False])
async def test_agents_get_the_same_defaults(engine, make, path, thinks):
    stack = await make(enable_thinking=thinks)
    body = (await stack.client.post(path, json={"top_k": 3})).json()
    published = THINKING if thinks else NON_THINKING
    assert body["chat_template_kwargs"] == {"enable_thinking": thinks}
    assert (body["temperature"], body["top_p"], body["top_k"]) == (published["temperature"], published["top_p"], 3)
    assert "min_p" not in body  # Neither protocol has it, and what a protocol has not would be ignored.


async def test_responses_choose_the_mode_by_their_effort(engine, make):
    stack = await make()
    body = (await stack.client.post("/v1/responses", json={"reasoning": {"effort": "none"}})).json()
    assert "chat_template_kwargs" not in body
    assert body["presence_penalty"] == NON_THINKING["presence_penalty"]


@pytest.mark.parametrize("path", AGENTS)
async def test_agents_meet_the_same_guards(engine, make, path):
    stack = await make(api_key="right-key", max_body_bytes=100)
    wrong = await stack.client.post(path, json={}, headers={"authorization": "Bearer wrong"})
    assert wrong.status_code == 401
    assert (await stack.client.post(path, content=b"{")).status_code == 400
    assert (await stack.client.post(path, content=b" " * 101)).status_code == 413
    assert engine.completions == []


async def test_a_key_is_taken_from_where_anthropics_clients_put_it(engine, make):
    stack = await make(api_key="right-key")
    del stack.client.headers["authorization"]
    for key, status in (("right-key", 200), ("wrong", 401)):
        response = await stack.client.post("/v1/messages", json={}, headers={"x-api-key": key})
        assert response.status_code == status
    assert engine.headers[-1]["authorization"] == "Bearer right-key"


async def test_anthropics_clients_get_errors_in_their_form(engine, make):
    stack = await make()
    for path, content in (("/v1/messages", b"{"), ("/v1/messages/count_tokens", b"[]")):
        error = (await stack.client.post(path, content=content)).json()
        assert error["type"] == "error"
        assert error["error"]["type"] == "BadRequestError"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
async def test_a_stream_that_breaks_ends_with_an_event_of_its_protocol(engine, make, path):
    async def answer(body, receive, send):
        await engine.start(send)
        await engine.piece(send, b"data: 1\n\n")
        raise ConnectionAbortedError

    engine.answer = answer
    stack = await make()
    text = (await stack.client.post(path, json={})).text
    event = text.removeprefix("data: 1\n\n")
    assert event.startswith("event: error\ndata: {" if path == "/v1/messages" else 'data: {"error"')


ORIGIN = {"origin": "https://page.example"}


async def test_pages_of_other_origins_may_not_call_by_default(engine, make):
    stack = await make()
    response = await stack.chat()
    assert "origin" not in engine.headers[-1]
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("origins", "allowed"), [(("*",), "*"), (("https://a.example", ORIGIN["origin"]), ORIGIN["origin"])]
)
async def test_pages_of_named_origins_may_call(engine, make, origins, allowed):
    stack = await make(cors_origins=origins, api_key="right-key")
    asks = {**ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    path = "/v1/chat/completions"
    del stack.client.headers["authorization"]  # A browser asks first, without the key.
    preflight = await stack.client.options(path, headers=asks)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, allowed)
    for key, status in (("right-key", 200), ("wrong", 401)):
        headers = {**ORIGIN, "authorization": f"Bearer {key}"}
        response = await stack.client.post(path, json={}, headers=headers)
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (status, allowed)


async def test_pages_of_origins_that_are_not_named_may_not(engine, make):
    stack = await make(cors_origins=("https://a.example",))
    response = await stack.client.post("/v1/chat/completions", json={}, headers=ORIGIN)
    assert "access-control-allow-origin" not in response.headers
