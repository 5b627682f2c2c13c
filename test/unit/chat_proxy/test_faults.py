"""Every way in which a request fails has its own status and the shape that OpenAI clients read."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest

CHAT = "/v1/chat/completions"


def check(response: httpx.Response, status: int) -> str:
    assert response.status_code == status
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == status
    return error["message"]


@pytest.mark.parametrize(
    ("raw", "says"),
    [(b"{", "JSON"), (b'{"a": "\xff"}', "UTF-8"), (b"[" * 5000, "levels"), (b"[]", "object"), (b"", "JSON")],
)
async def test_a_bad_body_is_400_and_never_reaches_the_engine(engine, make, raw, says):
    stack = await make()
    assert says in check(await stack.client.post(CHAT, content=raw), 400)
    assert engine.completions == []


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_body_is_413_even_to_a_client_that_writes_it_all(engine, make, chunked):
    stack = await make(max_body_bytes=1 << 20)
    body = b"x" * (5 << 20)

    async def chunks():
        for i in range(0, len(body), 1 << 16):
            yield body[i : i + (1 << 16)]

    check(await stack.client.post(CHAT, content=chunks() if chunked else body), 413)
    assert engine.completions == []
    assert (await stack.chat()).status_code == 200


async def test_one_request_too_many_is_429_until_a_place_is_free(engine, make):
    entered, leave = asyncio.Event(), asyncio.Event()

    async def answer(body, receive, send):
        entered.set()
        await leave.wait()
        await engine.echo(body, receive, send)

    engine.answer = answer
    stack = await make(max_concurrent=1)
    first = asyncio.create_task(stack.chat())
    await entered.wait()
    refused = await stack.chat()
    check(refused, 429)
    assert refused.headers["retry-after"] == "1"
    leave.set()
    assert (await first).status_code == 200
    assert (await stack.chat()).status_code == 200


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic right-key", "right-key", "Bearer"])
async def test_a_wrong_key_is_401_on_every_forwarded_route(engine, make, authorization):
    stack = await make(api_key="right-key")
    stack.client.headers.pop("authorization")
    headers = {"authorization": authorization} if authorization else {}
    for method, path in (("POST", CHAT), ("POST", "/tokenize"), ("GET", "/v1/models")):
        response = await stack.client.request(method, path, headers=headers)
        check(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
    assert (await stack.client.get("/health")).status_code == 200
    assert (await stack.client.post(CHAT, json={}, headers={"authorization": "bearer right-key"})).status_code == 200


@pytest.mark.parametrize(("method", "path", "status"), [("POST", "/reset_prefix_cache", 404), ("GET", CHAT, 405)])
async def test_what_is_not_forwarded_is_refused_in_the_same_shape(engine, make, method, path, status):
    stack = await make()
    check(await stack.client.request(method, path), status)
    assert engine.completions == []


async def test_a_backend_that_breaks_off_before_answering_is_502(engine, make):
    async def answer(body, receive, send):
        await engine.start(send, content_type=b"application/json")
        await engine.piece(send, b'{"half": ')  # Returning here makes the server drop the connection.

    engine.answer = answer
    stack = await make()
    check(await stack.chat(), 502)


@pytest.mark.parametrize("began", [False, True])
async def test_a_silent_backend_is_504(engine, make, began):
    async def answer(body, receive, send):
        if began:
            await engine.start(send, content_type=b"application/json")
        await receive()

    engine.answer = answer
    stack = await make(response_timeout=1.0)
    check(await stack.chat(), 504)
    await stack.until(lambda: len(stack.proxy.admission) == 0)


def dies_after(engine, data: bytes):
    async def answer(body, receive, send):
        await engine.start(send)
        await engine.piece(send, data)

    return answer


@pytest.mark.parametrize("ends", [b"\n\n", b"\r\n\r\n"])
async def test_a_stream_that_dies_ends_with_an_error_event(engine, make, ends):
    event = b'data: {"x": 1}' + ends
    engine.answer = dies_after(engine, event)
    stack = await make()
    async with stack.stream() as response:
        got = b"".join([piece async for piece in response.aiter_raw()])
    assert got.startswith(event)
    last = got.removeprefix(event)
    assert last.startswith(b"data: ")
    assert last.endswith(b"\n\n")
    assert json.loads(last[6:])["error"]["code"] == 502
    assert (await stack.client.get("/health")).status_code == 200


async def test_a_stream_that_falls_silent_ends_with_an_error_event(engine, make):
    async def answer(body, receive, send):
        await engine.start(send)
        await engine.piece(send, b": ping\n\n")
        await receive()

    engine.answer = answer
    stack = await make(response_timeout=1.0)
    async with stack.stream() as response:
        got = b"".join([piece async for piece in response.aiter_raw()])
    assert json.loads(got.split(b"data: ")[1])["error"]["code"] == 504


async def test_a_stream_that_dies_within_an_event_drops_the_connection(engine, make):
    engine.answer = dies_after(engine, b'data: {"x"')
    stack = await make()
    async with stack.client.stream("POST", "/v1/completions", json={"stream": True}) as response:
        with pytest.raises(httpx.RemoteProtocolError):
            await response.aread()
    engine.answer = engine.echo
    assert (await stack.chat()).status_code == 200


async def test_a_chat_stream_that_dies_within_an_event_ends_with_an_error_event(engine, make):
    engine.answer = dies_after(engine, b': ping\n\ndata: {"x"')
    stack = await make()
    async with stack.stream() as response:
        got = b"".join([piece async for piece in response.aiter_raw()])
    assert json.loads(got.removeprefix(b": ping\n\ndata: "))["error"]["code"] == 502


async def test_the_openai_client_sees_a_dead_stream_as_an_error(engine, make):
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "tiny", "choices": []}
    engine.answer = dies_after(engine, b"data: " + json.dumps(chunk).encode() + b"\n\n")
    stack = await make()
    async with openai.AsyncOpenAI(base_url=f"{stack.client.base_url}/v1", api_key="k", max_retries=0) as client:
        stream = await client.chat.completions.create(model="tiny", messages=[], stream=True)
        assert (await anext(stream)).id == "c"
        with pytest.raises(openai.APIError, match="broke off"):
            await anext(stream)
