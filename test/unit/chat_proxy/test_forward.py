"""What goes through the proxy: bytes, headers, defaults, and the moment at which they go."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from vllm_integration.chat_proxy.defaults import NON_THINKING, THINKING


async def test_an_event_is_forwarded_before_the_next_is_made(engine, make):
    seen = asyncio.Event()

    async def answer(body, receive, send):
        await engine.start(send)
        await engine.piece(send, b"data: 1\n\n")
        await seen.wait()  # The second event is made only after the client has read the first.
        await engine.piece(send, b"data: 2\n\n", more=False)

    engine.answer = answer
    stack = await make()
    async with asyncio.timeout(60), stack.stream() as response:
        pieces = response.aiter_raw()
        assert await anext(pieces) == b"data: 1\n\n"
        seen.set()
        assert b"".join([piece async for piece in pieces]) == b"data: 2\n\n"


async def test_a_stream_is_the_same_byte_for_byte(engine, make):
    rng = random.Random(0)
    sent = [rng.randbytes(rng.randrange(1, 5000)) for _ in range(200)]

    async def answer(body, receive, send):
        await engine.start(send)
        for data in sent:
            await engine.piece(send, data)
        await engine.piece(send, b"", more=False)

    engine.answer = answer
    stack = await make()
    async with stack.stream() as response:
        assert b"".join([piece async for piece in response.aiter_raw()]) == b"".join(sent)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-request-id"] == "r1"


async def test_headers_of_one_connection_are_not_forwarded(engine, make):
    stack = await make()
    await stack.client.post(
        "/v1/completions",
        json={},
        headers={"connection": "x-hop", "x-hop": "1", "te": "trailers", "x-request-id": "abc", "authorization": "k"},
    )
    (headers,) = engine.headers
    assert headers["x-request-id"] == "abc"
    assert headers["authorization"] == "k"
    assert not {"x-hop", "te"} & headers.keys()


@pytest.mark.parametrize("default", [True, False])
async def test_chat_defaults_follow_the_mode(engine, make, default):
    stack = await make(enable_thinking=default)
    published = {True: THINKING, False: NON_THINKING}
    body = (await stack.chat(temperature=0.3)).json()
    assert body["chat_template_kwargs"] == {"enable_thinking": default}
    assert {name: body[name] for name in THINKING} == {**published[default], "temperature": 0.3}
    other = {"enable_thinking": not default}
    body = (await stack.chat(chat_template_kwargs=other)).json()
    assert body["chat_template_kwargs"] == other
    assert {name: body[name] for name in THINKING} == published[not default]


async def test_sampling_defaults_can_be_off(engine, make):
    stack = await make(sampling_defaults=False)
    assert (await stack.chat()).json() == {"messages": [], "chat_template_kwargs": {"enable_thinking": True}}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_body_that_needs_nothing_is_forwarded_as_written(engine, make, path):
    stack = await make()
    raw = b'{ "temperature":0.0,\n"messages":[], "chat_template_kwargs": {"enable_thinking":true}, "x": "\\u00e9" }'
    await stack.client.post(path, content=raw)
    assert engine.completions == [raw]


async def test_tokenize_counts_what_chat_would_render(engine, make):
    stack = await make(enable_thinking=False)
    body = (await stack.client.post("/tokenize", json={"messages": []})).json()
    assert body == {"messages": [], "chat_template_kwargs": {"enable_thinking": False}}
    assert (await stack.client.post("/tokenize", json={"prompt": "a"})).json() == {"prompt": "a"}


@pytest.mark.parametrize("of", ["/v1/chat/completions", "/v1/completions", "/v1/messages"])
async def test_what_is_rendered_is_what_would_run(engine, make, of):
    stack = await make(enable_thinking=False)
    body = {"messages": [{"role": "developer", "content": "Be brief."}], "max_tokens": 5}
    if of == "/v1/completions":
        body = {"prompt": "a", "max_tokens": 5}
    run, rendered = [(await stack.client.post(route, json=body)).json() for route in (of, f"{of}/render")]
    assert rendered == run
    assert engine.paths == [of, f"{of}/render"]


async def test_get_and_query_are_forwarded(engine, make):
    stack = await make()
    assert (await stack.client.get("/v1/models?x=1")).json()["data"][0]["id"] == "tiny"


@pytest.mark.parametrize("status", [400, 404, 422, 500])
async def test_an_error_of_the_backend_is_passed_through(engine, make, status):
    refusal = b'{"error": {"message": "the context is 4096 tokens", "type": "BadRequestError", "code": 400}}'

    async def answer(body, receive, send):
        await engine.start(send, status, b"application/json")
        await engine.piece(send, refusal, more=False)

    engine.answer = answer
    stack = await make()
    for stream in (False, True):
        response = await stack.chat(stream=stream)
        assert (response.status_code, response.content) == (status, refusal)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_the_request_at_the_backend(engine, make, stream):
    waiting, gone = asyncio.Event(), asyncio.Event()

    async def answer(body, receive, send):
        if stream:
            await engine.start(send)
            await engine.piece(send, b"data: 1\n\n")
        waiting.set()
        assert (await receive())["type"] == "http.disconnect"
        gone.set()

    engine.answer = answer
    stack = await make()

    async def client() -> None:
        async with stack.stream() as response:
            await anext(response.aiter_raw())
            await waiting.wait()
            await asyncio.Event().wait()

    task = asyncio.create_task(client() if stream else stack.chat())
    await waiting.wait()
    if stream:
        await stack.until(lambda: stack.counted("qwen36_proxy_response_bytes_total", route="/v1/chat/completions") > 0)
    task.cancel()
    async with asyncio.timeout(60):
        await gone.wait()
    await stack.until(lambda: len(stack.proxy.admission) == 0)
    assert stack.counted("qwen36_proxy_requests_total", route="/v1/chat/completions", status="499") == 1


async def test_many_streams_run_at_once(engine, make):
    count = 32
    barrier = asyncio.Barrier(count)

    async def answer(body, receive, send):
        await engine.start(send)
        await barrier.wait()  # Nobody goes on before all have come in.
        await engine.piece(send, b"data: %d\n\n" % body["x"], more=False)

    engine.answer = answer
    stack = await make(max_concurrent=count)
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(stack.chat(x=i) for i in range(count)))
    assert [answer.content for answer in answers] == [b"data: %d\n\n" % i for i in range(count)]


async def test_nothing_is_kept_between_requests(engine, make):
    stack = await make()
    for i in range(20):
        assert json.loads((await stack.chat(x=i)).content)["x"] == i
    assert len(stack.proxy.admission) == 0
