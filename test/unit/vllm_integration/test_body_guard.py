"""Bodies that vLLM's own request models fail at are answered 400, and failures of the server stay what they are."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler

from vllm_integration.body_guard import MAX_DEPTH, BodyGuard, first_error

NAMED = {"type": "function", "function": {"name": "f"}}
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
DEEP = "[" * (MAX_DEPTH + 1)


@pytest.fixture(scope="module")
def app() -> FastAPI:
    """vLLM's request models and handlers of exceptions, without an engine."""
    made = FastAPI()
    init_exception_handler(made)
    made.state.args = SimpleNamespace(log_error_stack=False)
    made.state.vllm_config = SimpleNamespace(
        additional_config={},
        structured_outputs_config=SimpleNamespace(backend="xgrammar"),
        scheduler_config=SimpleNamespace(policy="fcfs"),
    )

    @made.post("/v1/chat/completions")
    async def chat(request: ChatCompletionRequest) -> dict[str, str]:
        return {"model": request.model or ""}

    @made.post("/v1/completions")
    async def complete(request: CompletionRequest) -> dict[str, str]:
        return {"model": request.model or ""}

    @made.post("/v1/messages")
    async def messages(request: AnthropicMessagesRequest) -> JSONResponse:
        return JSONResponse({"type": "error", "error": {"type": "InternalServerError", "message": "x"}}, 500)

    @made.post("/broken")
    async def broken(request: Request) -> None:
        raise KeyError("of the server's own")

    @made.post("/stream")
    async def stream(request: Request) -> StreamingResponse:
        pieces = (await request.json())["pieces"]

        async def events() -> AsyncIterator[str]:
            for piece in pieces:
                yield piece

        return StreamingResponse(events(), media_type="text/event-stream")

    made.add_middleware(BodyGuard)
    return made


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as made:
        yield made


@pytest.mark.parametrize("wanted", [True, "x", [1], 3, {"json": DEEP}, {"json": "{"}, {"structural_tag": "x"}])
@pytest.mark.parametrize(("path", "good"), [("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "Hi"})])
async def test_structured_outputs_that_are_none_are_400(client, path, good, wanted):
    response = await client.post(path, json={**good, "structured_outputs": wanted})
    assert response.status_code == 400, response.text
    assert "structured_outputs" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("tools", "field"),
    [
        ([{}], "tools[0]"),
        ([NAMED, {"type": "function"}], "tools[1]"),
        ([{"type": "function", "function": {}}], "tools[0].function"),
        ([{"type": "function", "function": {"name": 3}}], "tools[0].function"),
        ([3], "tools[0]"),
        ({}, "tools"),
        (3, "tools"),
    ],
)
async def test_malformed_tools_beside_a_named_choice_are_400(client, tools, field):
    response = await client.post("/v1/chat/completions", json={**CHAT, "tools": tools, "tool_choice": NAMED})
    assert response.status_code == 400, response.text
    assert field in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("tools", "choice", "field"),
    [
        ([{"type": "web_search"}], "auto", "tools[0].type"),
        ([{"type": "function", "name": "f"}, {"type": "mcp"}], "auto", "tools[1].type"),
        ([{"type": "function", "name": "f"}], {"type": "web_search_preview"}, "tool_choice.type"),
        ([{"type": "function", "name": "f"}], {"type": "function", "name": "g"}, "tool_choice.name"),
        ([{"type": "function", "name": "f"}], {"type": "function", "name": "f"}, None),
        (None, "auto", None),
    ],
)
async def test_tools_that_run_nowhere_here_are_refused_by_name(client, tools, choice, field):
    response = await client.post("/v1/responses", json={"input": "Hi", "tools": tools, "tool_choice": choice})
    assert (response.status_code, response.json().get("error", {}).get("param")) == (400 if field else 404, field)


@pytest.mark.parametrize("field", ["vllm_xargs", "chat_template_kwargs", "response_format", "top_k", "anything"])
@pytest.mark.parametrize(("number", "status"), [(2**64, 400), (-(2**63) - 1, 400)])
async def test_integers_beyond_64_bits_are_400_wherever_they_are(client, field, number, status):
    response = await client.post("/v1/chat/completions", json={**CHAT, field: {"a": [number]}})
    assert response.status_code == status
    assert f"{field}.a[0]" in response.json()["error"]["message"]


@pytest.mark.parametrize("number", [2**64 - 1, -(2**63)])
async def test_integers_of_64_bits_are_served(client, number):
    response = await client.post("/v1/chat/completions", json={**CHAT, "vllm_xargs": {"a": number}})
    assert response.status_code == 200


@pytest.mark.parametrize("raw", [b"{", b"[" * 10_000, b'{"a": "\xff"}', b'{"a": "\\ud800"}', b'{"a": NaN}'])
async def test_what_is_no_json_is_400(client, raw):
    response = await client.post("/v1/chat/completions", content=raw, headers={"content-type": "application/json"})
    assert response.status_code == 400


@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params"])
async def test_what_would_be_ignored_is_refused_by_name(client, name):
    response = await client.post("/v1/completions", json={"prompt": "Hi", name: {"do_remote_prefill": True}})
    assert response.status_code == 400
    assert name in response.json()["error"]["message"]


@pytest.mark.parametrize("bound", ["minProperties", "maxProperties"])
@pytest.mark.parametrize(("count", "status"), [(100, 200), (1000, 400)])
async def test_schemas_that_count_many_properties_are_400(client, bound, count, status):
    """Their grammar grows with the product: 1,000 properties and a bound of 500 are 50 MB of it."""
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(count)}, bound: count // 2}
    as_text = await client.post(
        "/v1/completions", json={"prompt": "a", "structured_outputs": {"json": json.dumps(schema)}}
    )
    as_tool = {**CHAT, "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}
    assert as_text.status_code == status
    assert (await client.post("/v1/chat/completions", json=as_tool)).status_code == status


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "integer", "multipleOf": 3}, "multipleOf at $"),
        (
            {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}},
            "uniqueItems at $.properties.a",
        ),
        ({"anyOf": [{"type": "object", "patternProperties": {"a": {}}}]}, "patternProperties at $.anyOf[0]"),
        ({"type": "string", "pattern": "a", "minLength": 3}, "minLength or maxLength at $"),
        ({"type": "string", "format": "colour"}, "format 'colour' at $"),
    ],
)
async def test_keywords_that_the_grammar_leaves_out_are_named(client, app, schema, keyword):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    response = await client.post("/v1/chat/completions", json={**CHAT, "response_format": form})
    assert response.status_code == 400
    assert keyword in response.json()["error"]["message"]
    app.state.vllm_config.structured_outputs_config.backend = "guidance"
    try:
        assert (await client.post("/v1/chat/completions", json={**CHAT, "response_format": form})).status_code == 200
    finally:
        app.state.vllm_config.structured_outputs_config.backend = "xgrammar"


async def test_a_failure_of_the_server_stays_500(client):
    assert (await client.post("/broken", json={})).status_code == 500


async def test_a_body_that_anthropics_translation_fails_at_is_400(client):
    part: dict[str, Any] = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image", "source": 3}]}
    body = {"model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": [part]}]}
    response = await client.post("/v1/messages", json=body)
    assert response.status_code == 400
    assert response.json()["type"] == "error"
    body["messages"] = [{"role": "user", "content": "Hi"}]
    assert (await client.post("/v1/messages", json=body)).status_code == 500  # That one is the server's.


async def test_refusals_of_validation_have_the_form_of_their_protocol(client):
    for path, form in (("/v1/messages", {"type", "error"}), ("/v1/completions", {"error"})):
        response = await client.post(path, json={"max_tokens": "x"})
        assert (response.status_code, set(response.json())) == (400, form)


@pytest.mark.parametrize("code", [400, 404, 500])
async def test_an_error_that_begins_a_stream_becomes_the_status(client, code):
    event = json.dumps({"error": {"message": "m", "type": "t", "param": "p", "code": code}})
    response = await client.post("/stream", json={"pieces": [f"data: {event}\n\n", "data: [DONE]\n\n"]})
    assert response.status_code == code
    assert response.json()["error"]["message"] == "m"


async def test_an_error_later_in_a_stream_stays_an_event(client):
    pieces = ["data: 1\n\n", 'data: {"error": {"message": "m", "code": 400}}\n\n']
    response = await client.post("/stream", json={"pieces": pieces})
    assert (response.status_code, response.text) == (200, "".join(pieces))


async def test_a_stream_of_text_is_untouched(client):
    pieces = ['data: {"choices": [{"text": "{\\"error\\""}]}\n\n', ": comment\n\n", "data: [DONE]\n\n"]
    assert (await client.post("/stream", json={"pieces": pieces})).text == "".join(pieces)


@pytest.mark.parametrize(
    ("kind", "status"), [("BadRequestError", 400), ("invalid_request_error", 400), ("InternalServerError", 500)]
)
def test_an_error_event_of_anthropics_protocol_has_its_status_in_its_type(kind, status):
    data = json.dumps({"type": "error", "error": {"type": kind, "message": "m"}})
    error = first_error(f"event: error\ndata: {data}\n\n".encode())
    assert error is not None
    assert error.status == status


@pytest.mark.parametrize("events", [b"", b"data: {", b'data: {"error": 3}\n\n', b'data: {"error": {}}\n\n', b": x\n\n"])
def test_what_is_no_error_is_none(events):
    assert first_error(events) is None


async def test_a_field_without_effect_is_refused_unless_the_server_takes_them(app: FastAPI) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(BodyGuard(app)), base_url="http://guard") as client:
        answer = await client.post("/v1/chat/completions", json={**CHAT, "guided_regex": "a"})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "guided_regex"
        answer = await client.post("/v1/messages", json={**CHAT, "max_tokens": 1, "container": "x"})
        assert answer.status_code == 400
        assert answer.json()["type"] == "error"
    app.state.vllm_config.additional_config = {"allow_unknown_fields": True}
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(BodyGuard(app)), base_url="http://guard") as client:
            answer = await client.post("/v1/chat/completions", json={**CHAT, "guided_regex": "a"})
            assert answer.status_code == 200
    finally:
        app.state.vllm_config.additional_config = {}
