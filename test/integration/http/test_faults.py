"""What clients do wrong is answered with a proper status, holds nothing, and does not touch the next request."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from urllib.parse import urlsplit

import httpx
import openai
import pytest

pytestmark = pytest.mark.http

PATHS = ("/v1/chat/completions", "/v1/completions")
PROMPT = "Once upon a time"
GOOD = {"model": "tiny", "prompt": PROMPT, "max_tokens": 4}


@pytest.fixture(autouse=True)
def serves_on(server):
    """Every test leaves nothing held, and the next request is answered as ever."""
    expected = server.tokens(PROMPT)
    yield
    server.wait_idle()
    assert server.tokens(PROMPT) == expected


def error(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    body = response.json()["error"]
    assert body["code"] == status
    return body["message"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "raw", [b"", b"{", b'{"model": "tiny", ', b"[1, 2]", b"null", b'{"temperature": NaN}', b"[" * 100_000, b"\x00\x01"]
)
def test_malformed_json_is_400(server, path, raw):
    error(server.http.post(path, content=raw, headers={"content-type": "application/json"}), 400)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("raw", [b'{"prompt": "\xff\xfe"}', b'{"prompt": "\xc3"}', b'{"prompt": "\\ud83d"}'])
def test_text_that_is_not_utf8_is_400(server, path, raw):
    error(server.http.post(path, content=raw, headers={"content-type": "application/json"}), 400)


@pytest.mark.parametrize("path", PATHS)
def test_an_oversized_body_is_413(server, path):
    body = json.dumps({**GOOD, "prompt": "x" * (9 << 20)})
    assert "8388608" in error(server.http.post(path, content=body), 413)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": [7] * 2048},
        {"prompt": [7] * 2049},
        {"prompt": "word " * 50_000},
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"prompt": []},
        {"prompt": [-1]},
        {"prompt": [10**6]},
        {"temperature": -0.1},
        {"temperature": "warm"},
        {"top_p": 1.5},
        {"top_k": -7},
        {"min_p": 2},
        {"n": 0},
        {"logprobs": 10**6},
        {"logit_bias": {"9999999": 1}},
        {"seed": "x"},
        {"stop_token_ids": ["a"]},
        {"structured_outputs": {"json": "{"}},
        {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"regex": "(?i)yes|no"}},
        {"structured_outputs": {"regex": r"\p{L}+"}},
        {"structured_outputs": {"regex": "[a-z]"}, "allowed_token_ids": [5]},
        {"structured_outputs": {"grammar": "root ::= root"}},
        {"structured_outputs": {"json": {"$ref": "#"}}},
        {"structured_outputs": {"json": {"type": "array", "minItems": 10**9}}},
        {"structured_outputs": {"json": {"type": "integer", "maximum": 2**64}}},
        {"structured_outputs": {"json": {"type": "integer", "maximum": 2**63}}},
        {"structured_outputs": {"json": {"enum": list(range(50_000))}}},
        {"structured_outputs": {"json": "[" * 5000}},
        {"structured_outputs": {"json": {"type": "integer", "multipleOf": 3}}},
        {"structured_outputs": True},
        {"vllm_xargs": {"a": 2**64}},
        {"stream_interval": 2**64},
        {"kv_transfer_params": {"a": 1}},
    ],
    ids=lambda change: json.dumps(change)[:40],
)
def test_what_cannot_be_done_is_400_and_says_why(server, change):
    assert error(server.http.post("/v1/completions", json={**GOOD, **change}), 400)
    streamed = server.http.post("/v1/completions", json={**GOOD, **change, "stream": True})
    assert error(streamed, 400)  # And not a status of 200 with an event that takes it back.


@pytest.mark.parametrize(("prompt", "asked", "room"), [(2000, 49, 48), (2000, 10**9, 48), (2047, 16, 1)])
def test_an_answer_is_cut_to_what_fits(server, prompt, asked, room):
    usage = server.complete([7] * prompt, max_tokens=asked).usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (prompt, room)


def test_the_longest_sequence_that_fits_is_served(server):
    answer = server.complete([7] * 2000, max_tokens=48)
    assert answer.usage.total_tokens == 2048
    assert server.complete([7] * 2047, max_tokens=1).usage.total_tokens == 2048


def test_an_unknown_model_is_404(server):
    with pytest.raises(openai.NotFoundError):
        server.client.completions.create(model="other", prompt="x")


def test_an_unknown_route_is_404_and_administration_is_not_reachable(server):
    for path in ("/v1/nothing", "/reset_prefix_cache", "/load", "/sleep"):
        error(server.http.post(path), 404)


def test_a_request_cut_off_while_it_is_sent_holds_nothing(server):
    address = urlsplit(server.url)
    for sent in (b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{", b"\x16\x03\x01", b"GET"):
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(sent)


async def _client(http: httpx.AsyncClient, number: int, length: int) -> list[int] | None:
    """One streaming client; odd ones leave: at once, before the first token, or after `number // 8` tokens."""
    body = {
        "model": "tiny",
        "prompt": [number + 1] * (number + 1),
        "max_tokens": length,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    tokens: list[int] = []
    async with http.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        if number % 2 and number < 8:
            return None
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            tokens += event["choices"][0]["token_ids"] or []
            if number % 2 and len(tokens) >= number // 8:
                return None
    return tokens


async def _crowd(url: str, count: int, length: int) -> list[list[int] | None]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=240, limits=limits, trust_env=False) as http:
        return await asyncio.gather(*(_client(http, number, length) for number in range(count)))


def test_of_64_clients_half_leave_and_the_others_get_what_they_asked_for(server):
    length = 32
    before = server.metrics()["qwen36_proxy_requests_total"]
    got = asyncio.run(_crowd(server.url, 64, length))
    after = server.wait_idle()
    assert [tokens is None for tokens in got] == [number % 2 == 1 for number in range(64)]
    for number in (0, 2, 30, 62):
        assert got[number] == server.tokens([number + 1] * (number + 1), max_tokens=length)
    assert all(tokens is None or len(tokens) == length for tokens in got)
    assert after["qwen36_proxy_requests_total"] == before + 64
    server.wait_idle()


def test_a_client_that_leaves_frees_its_lane_long_before_its_last_token(server):
    asked, before = 2000, server.metrics()["vllm:generation_tokens_total"]
    with server.http.stream(
        "POST", "/v1/completions", json={**GOOD, "max_tokens": asked, "stream": True, "ignore_eos": True}
    ) as response:
        lines = response.iter_lines()  # Held: a reader that is dropped closes the connection, and the client has left.
        next(lines)
        deadline = time.monotonic() + 60
        while server.metrics()["qwen36:lanes_in_use"] != 1:  # Written once a step, after the step's output.
            assert time.monotonic() < deadline, "the stream runs and no lane is in use"
            time.sleep(0.02)
    now = server.wait_idle()
    generated = now["vllm:generation_tokens_total"]
    assert generated - before < asked
    assert server.wait_idle()["vllm:generation_tokens_total"] == generated  # Nobody goes on generating.


def test_a_client_that_leaves_before_the_answer_frees_its_lane_too(server):
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/completions", json={**GOOD, "max_tokens": 2000, "ignore_eos": True}, timeout=0.5)
    server.wait_idle()
