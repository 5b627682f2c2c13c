"""What clients and agents send is served as they mean it, by every protocol, and counted as it is run."""

from __future__ import annotations

from typing import Any

import pytest
from fuzz import ROUTES, fuzz

pytestmark = pytest.mark.http

PLAIN = {"chat_template_kwargs": {"enable_thinking": False}}
USER = {"role": "user", "content": "What is the opposite of hot?"}
ANSWER = {"role": "tool", "tool_call_id": "1", "content": "blue"}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
ACT = {"type": "function", "name": "look", "parameters": {"type": "object"}}
IMAGE = {"type": "image", "source": 3}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CONVERSATIONS = {
    "one system": [said("system", "Be brief."), USER],
    "developer": [said("developer", "Be brief."), USER],
    "two systems": [said("system", "Be brief."), said("system", "Be kind."), USER],
    "system and developer": [said("system", "Be brief."), said("developer", [{"type": "text", "text": "x"}]), USER],
    "a later system": [USER, said("assistant", "Cold."), said("system", "Now shout."), USER],
    "parts": [said("user", [{"type": "text", "text": "What is"}, {"type": "text", "text": "hot?"}])],
    "null": [said("system", None), USER, said("assistant", None), USER],
    "a call without content": [
        USER,
        {"role": "assistant", "tool_calls": [CALL]},
        said("tool", "blue", tool_call_id="1"),
    ],
    "a call with null": [USER, said("assistant", None, tool_calls=[CALL]), ANSWER],
    "past reasoning": [USER, said("assistant", "Cold.", reasoning_content="Hm.", tool_calls=[CALL]), ANSWER],
}


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize(
    "mode", [{}, PLAIN, {"reasoning_effort": "none"}, {"reasoning_effort": "low", "tools": [TOOL]}]
)
def test_conversations_are_served_and_counted_as_they_are_run(server, messages, mode):
    body = {"model": "tiny", "messages": messages, **mode}
    answer = server.http.post("/v1/chat/completions", json={**body, "max_tokens": 1})
    assert answer.status_code == 200, answer.text
    counted = server.http.post("/tokenize", json=body).json()
    assert counted["count"] == answer.json()["usage"]["prompt_tokens"]


def test_instructions_keep_their_order_and_their_place(server):
    def rendered(*messages: dict[str, Any]) -> list[int]:
        return server.http.post("/tokenize", json={"model": "tiny", "messages": messages, **PLAIN}).json()["tokens"]

    assert rendered(said("system", "a"), said("developer", "b"), USER) == rendered(said("system", "a\n\nb"), USER)
    assert rendered(USER, said("system", "b"), USER) == rendered(USER, said("user", "b"), USER)


def test_a_prompt_that_is_too_long_is_refused_with_its_length(server):
    answer = server.http.post(
        "/v1/chat/completions", json={"messages": [said("user", "word " * 3000)], "max_tokens": 5}
    )
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400
    assert "at most 2048 fit" in message
    assert int(message.split("The prompt has ")[1].split()[0]) >= 3000


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_every_protocol_cuts_an_answer_to_what_fits(server, path):
    def count(words: int) -> int:
        messages = [said("user", "word " * words)]
        return server.http.post("/tokenize", json={"model": "tiny", "messages": messages}).json()["count"]

    each = (count(200) - count(100)) / 100
    words = 100 + int((2040 - count(100)) / each)
    room = 2048 - count(words)
    assert 0 < room < 50  # Little enough to be generated in a moment.
    long = "word " * words
    asks = {"input": long, "max_output_tokens": 10**6}
    if path != "/v1/responses":
        asks = {"messages": [said("user", long)], "max_tokens": 10**6}
    answer = server.http.post(path, json={"model": "tiny", "temperature": 0, **asks})
    assert answer.status_code == 200, answer.text
    used = answer.json()["usage"]
    asked, given = ("prompt", "completion") if path == "/v1/chat/completions" else ("input", "output")
    assert used[f"{asked}_tokens"] + used.get("cache_read_input_tokens", 0) == 2048 - room
    assert used[f"{given}_tokens"] <= room


def test_responses_are_served(server):
    items = [said("system", "a"), said("developer", "b"), USER, said("developer", "c"), USER]
    for input in ("Hi", items):
        answer = server.client.responses.create(
            model="tiny", input=input, max_output_tokens=8, instructions="Be brief."
        )
        assert answer.status in ("completed", "incomplete")
        assert answer.usage.output_tokens <= 8
    events = [
        event.type
        for event in server.client.responses.create(model="tiny", input="Hi", max_output_tokens=8, stream=True)
    ]
    assert events[0] == "response.created"
    assert events[-1] in ("response.completed", "response.incomplete")


def test_messages_are_served_and_counted(server):
    body = {"model": "tiny", "system": "Be brief.", "messages": [USER]}
    answer = server.http.post("/v1/messages", json={**body, "max_tokens": 4, "thinking": {"type": "disabled"}}).json()
    assert answer["role"] == "assistant"
    counted = server.http.post("/v1/messages/count_tokens", json={**body, "thinking": {"type": "disabled"}}).json()
    used = answer["usage"]
    assert counted["input_tokens"] == used["input_tokens"] + used.get("cache_read_input_tokens", 0)
    refused = server.http.post("/v1/messages", json={**body, "max_tokens": 0})
    assert (refused.status_code, refused.json()["type"]) == (400, "error")


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("/v1/chat/completions", {"tools": [{}], "tool_choice": {"type": "function", "function": {"name": "f"}}}),
        ("/v1/chat/completions", {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}),
        ("/v1/chat/completions", {"messages": [said("user", [{"type": "text", "text": 3}])]}),
        ("/v1/responses", {"input": [{"type": "item_reference", "id": "x"}]}),
        ("/v1/responses", {"input": "Hi", "tools": [{"type": "web_search"}], "tool_choice": "required"}),
        ("/v1/responses", {"input": "Hi", "tools": [{"type": "web_search"}]}),
        ("/v1/responses", {"input": "Hi", "tools": [ACT], "tool_choice": {"type": "function", "name": "g"}}),
        ("/v1/responses", {"input": "Hi", "structured_outputs": [1]}),
        ("/v1/messages", {"top_k": 2**64}),
        (
            "/v1/messages",
            {"messages": [said("user", [{"type": "tool_result", "content": [{"type": "image", "source": 3}]}])]},
        ),
        ("/tokenize", {"messages": 3}),
        ("/detokenize", {"tokens": [2**64]}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bodies_that_vllm_fails_at_are_400(server, path, change):
    common: dict[str, Any] = {"model": "tiny"}
    if path in ("/v1/chat/completions", "/v1/messages"):
        common |= {"messages": [USER], "max_tokens": 4}
    answer = server.http.post(path, json={**common, **change})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("route", ROUTES)
def test_no_body_makes_a_500(server, route):
    schema = server.http.get(f"{server.backend}/openapi.json").json()
    tried = fuzz(server.url, schema, route, "tiny", cases=12)
    assert tried.failures == []
    assert sum(tried.statuses.values()) >= 12
    server.wait_idle()


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/chat/completions", "guided_regex", "a+"),
        ("/v1/chat/completions", "temprature", 0),
        ("/v1/chat/completions", "chat_template_kwargs", {"thinking": False}),
        ("/v1/completions", "best_of", 3),
        ("/v1/responses", "store", True),
        ("/v1/messages", "container", "c"),
    ],
)
def test_a_field_without_effect_is_refused_by_name(server, path, field, value):
    body = {"model": "tiny", "prompt": "Hi", "max_tokens": 1}
    if path != "/v1/completions":
        body = {"model": "tiny", "messages": [USER], "max_tokens": 1}
    if path == "/v1/responses":
        body = {"model": "tiny", "input": "Hi", "max_output_tokens": 1}
    assert server.http.post(path, json=body).status_code == 200
    answer = server.http.post(path, json={**body, field: value})
    assert answer.status_code == 400
    assert field in answer.json()["error"]["message"]
