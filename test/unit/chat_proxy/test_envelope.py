"""What goes beyond the lengths that a server was accepted for is refused by name, or answered by another server."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

from qwen36_neuron.errors import ConfigError
from vllm_integration.chat_proxy import ProxySettings
from vllm_integration.chat_proxy.envelope import as_chat

from .conftest import FakeEngine

ACCEPTED = {"max_prompt_tokens": 60, "max_completion_tokens": 20}


def chat(tokens: int) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "x" * tokens}]}


PROMPTS = [
    ("/v1/chat/completions", chat),
    ("/v1/messages", lambda tokens: {**chat(tokens), "max_tokens": 5}),
    ("/v1/completions", lambda tokens: {"prompt": "x" * tokens}),
    ("/v1/completions", lambda tokens: {"prompt": [7] * tokens}),
    ("/v1/completions", lambda tokens: {"prompt": ["x", "x" * tokens]}),
    ("/v1/responses", lambda tokens: {"input": "x" * tokens}),
    (
        "/v1/responses",
        lambda tokens: {"input": [{"role": "user", "content": "x" * (tokens - 4)}], "instructions": "abcd"},
    ),
]
FIELDS = [
    ("/v1/chat/completions", "max_tokens", chat(10)),
    ("/v1/chat/completions", "max_completion_tokens", chat(10)),
    ("/v1/completions", "max_tokens", {"prompt": "x" * 10}),
    ("/v1/responses", "max_output_tokens", {"input": "x" * 10}),
    ("/v1/messages", "max_tokens", chat(10)),
]


@pytest.mark.parametrize(("path", "prompt"), PROMPTS)
async def test_the_longest_prompt_is_answered_and_one_token_more_refused(engine, make, path, prompt):
    engine.count()
    stack = await make(**ACCEPTED)
    assert (await stack.client.post(path, json=prompt(60))).status_code == 200
    before = engine.paths.count(path)
    response = await stack.client.post(path, json=prompt(61))
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert "61 tokens" in message
    assert "60" in message
    assert engine.paths.count(path) == before, "nothing was generated"
    assert stack.counted("qwen36_proxy_rejected_total", reason="envelope") == 1


@pytest.mark.parametrize(("path", "field", "body"), FIELDS)
async def test_the_longest_answer_is_given_and_one_token_more_refused(engine, make, path, field, body):
    engine.count()
    stack = await make(**ACCEPTED)
    fits = await stack.client.post(path, json={**body, field: 20})
    assert fits.status_code == 200
    assert fits.json()[field] == 20
    response = await stack.client.post(path, json={**body, field: 21})
    assert response.status_code == 400
    assert f"{field} is 21" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "field", "body"), [case for case in FIELDS if case[0] != "/v1/messages" and case[1] != "max_tokens"]
)
async def test_an_answer_of_no_said_length_is_bounded(engine, make, path, field, body):
    engine.count()
    stack = await make(**ACCEPTED)
    assert (await stack.client.post(path, json=body)).json()[field] == 20
    open_ended = await make()
    assert (await open_ended.client.post(path, json=body)).json().get(field) is None


@pytest.mark.parametrize(("most", "filled"), [(15, 15), (16, None), (20, None)])
async def test_a_completion_of_no_said_length_has_16_tokens_anyway(engine, make, most, filled):
    engine.count()
    stack = await make(max_completion_tokens=most)
    response = await stack.client.post("/v1/completions", json={"prompt": "x"})
    assert response.json().get("max_tokens") == filled


@pytest.mark.parametrize(("left", "status"), [(60, 200), (61, 400), (-1, 400)])
async def test_a_prompt_that_is_truncated_is_as_long_as_what_is_left(engine, make, left, status):
    engine.count()
    stack = await make(**ACCEPTED)
    body = {**chat(70), "truncate_prompt_tokens": left}
    assert (await stack.client.post("/v1/chat/completions", json=body)).status_code == status


@pytest.mark.parametrize("cut", [True, False])
async def test_what_was_filled_in_never_has_a_request_refused(engine, make, cut):
    """A prompt of 90 leaves 10 of 100: less than the 20 that are filled in, and nobody asked for those."""
    engine.count()
    stack = await make(max_completion_tokens=20, cut_max_tokens=cut)
    response = await stack.client.post("/v1/chat/completions", json=chat(90))
    assert response.status_code == 200
    assert response.json().get("max_completion_tokens") is None


@pytest.mark.parametrize(
    "body",
    [
        {"input": "x", "previous_response_id": "r1"},
        {"input": [{"type": "function_call_output", "output": "x"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}]},
    ],
)
async def test_a_prompt_of_unknown_length_is_beyond(engine, make, body):
    engine.count()
    stack = await make(**ACCEPTED)
    response = await stack.client.post("/v1/responses", json=body)
    assert response.status_code == 400
    assert "not known" in response.json()["error"]["message"]
    free = await make(max_completion_tokens=20)
    assert (await free.client.post("/v1/responses", json={**body, "input": "x"})).status_code == 200


def test_a_response_is_counted_as_the_chat_that_it_renders():
    body = {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}
        ],
        "instructions": "c",
        "tools": [{"type": "function", "name": "f", "parameters": {}}],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert as_chat(body) == {
        "messages": [{"role": "system", "content": "c"}, {"role": "user", "content": "ab"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "chat_template_kwargs": {"enable_thinking": False},
    }


@pytest.fixture
async def both(engine, fakes):
    """Two engines: what goes beyond the first one's lengths is the second one's."""
    engine.count()
    far = FakeEngine().count()
    async with contextlib.AsyncExitStack() as exits:
        near_url = await exits.enter_async_context(fakes.serving(engine.app))
        far_url = await exits.enter_async_context(fakes.serving(far.app))
        made = await exits.enter_async_context(fakes.stack(engine, near_url, long_context_backend=far_url, **ACCEPTED))
        await made.until(lambda: made.proxy.long_context.state.value == "ready")
        yield SimpleNamespace(near=engine, far=far, stack=made)


@pytest.mark.parametrize(("path", "prompt"), PROMPTS)
async def test_what_goes_beyond_is_answered_elsewhere(both, path, prompt):
    assert (await both.stack.client.post(path, json=prompt(60))).status_code == 200
    assert path not in both.far.paths
    response = await both.stack.client.post(path, json=prompt(61))
    assert response.status_code == 200
    assert both.far.paths == [path]
    assert both.near.paths.count(path) == 1
    assert both.stack.counted("qwen36_proxy_routed_total", route=path) == 1
    assert not any(response.json().get(field) == 20 for field in ("max_completion_tokens", "max_output_tokens"))


async def test_a_long_answer_is_streamed_from_elsewhere(both):
    async def stream(body, receive, send):
        await both.far.start(send)
        await both.far.piece(send, b'data: {"far": 1}\n\n')
        await both.far.piece(send, b"data: [DONE]\n\n", more=False)

    both.far.answer = stream
    async with both.stack.stream(max_tokens=21) as response:
        received = b"".join([part async for part in response.aiter_raw()])
    assert received == b'data: {"far": 1}\n\ndata: [DONE]\n\n'


async def test_an_answer_too_long_for_elsewhere_is_cut_there(both):
    response = await both.stack.client.post("/v1/chat/completions", json={**chat(61), "max_tokens": 50})
    assert response.json()["max_tokens"] == 39
    assert both.far.paths == ["/v1/chat/completions", "/tokenize", "/v1/chat/completions"]


async def test_a_server_elsewhere_that_is_not_there_fails_only_what_is_its_own(engine, fakes):
    engine.count()
    nobody = f"http://127.0.0.1:{fakes.free_port()}"
    async with (
        fakes.serving(engine.app) as url,
        fakes.stack(engine, url, long_context_backend=nobody, **ACCEPTED) as made,
    ):
        assert (await made.client.post("/v1/chat/completions", json=chat(60))).status_code == 200
        refused = await made.client.post("/v1/chat/completions", json=chat(61))
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        assert (await made.client.get("/health")).status_code == 200


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"max_prompt_tokens": 0}, "max_prompt_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"long_context_backend": "http://far:8000"}, "long_context_backend"),
        ({"long_context_backend": "far:8000", "max_prompt_tokens": 5}, "long_context_backend"),
        ({"long_context_backend": "http://far:8000/v1", "max_prompt_tokens": 5}, "long_context_backend"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(settings, field):
    with pytest.raises(ConfigError) as caught:
        ProxySettings(backend="http://127.0.0.1:1", **settings)
    assert caught.value.field == field
