"""Messages of several system roles, nulls and past reasoning, made into what the template renders."""

from __future__ import annotations

import copy

import pytest

from vllm_integration.chat_proxy import ProxySettings
from vllm_integration.chat_proxy.messages import normalise, normalise_input
from vllm_integration.chat_proxy.request_defaults import RequestDefaults

SYSTEM, DEVELOPER = "system", "developer"
IMAGE = [{"type": "input_image"}]
USER = {"role": "user", "content": "Hi"}


def said(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def text(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": one} for one in texts]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER], [USER]),
        ([said(SYSTEM, "a"), USER], [said(SYSTEM, "a"), USER]),
        ([said(DEVELOPER, "a"), USER], [said(SYSTEM, "a"), USER]),
        ([said(SYSTEM, "a"), said(SYSTEM, "b"), USER], [said(SYSTEM, "a\n\nb"), USER]),
        ([said(SYSTEM, "a"), said(DEVELOPER, "b"), said(SYSTEM, "c"), USER], [said(SYSTEM, "a\n\nb\n\nc"), USER]),
        ([said(SYSTEM, None), said(SYSTEM, "b"), USER], [said(SYSTEM, "b"), USER]),
        ([said(SYSTEM, text("a")), said(SYSTEM, "b"), USER], [said(SYSTEM, text("a", "\n\n", "b")), USER]),
        ([USER, said(SYSTEM, "b"), USER], [USER, said("user", "b"), USER]),
        ([said(SYSTEM, "a"), USER, said(DEVELOPER, "b")], [said(SYSTEM, "a"), USER, said("user", "b")]),
        ([said("user", None)], [said("user", "")]),
        (
            [USER, {"role": "assistant", "content": None, "tool_calls": [1]}, said("tool", None)],
            [USER, {"role": "assistant", "content": "", "tool_calls": [1]}, said("tool", "")],
        ),
        ([USER, {"role": "assistant", "tool_calls": [1]}], [USER, {"role": "assistant", "tool_calls": [1]}]),
        (
            [USER, {"role": "assistant", "content": "a", "reasoning_content": "r"}],
            [USER, {"role": "assistant", "content": "a", "reasoning": "r"}],
        ),
        (
            [USER, {"role": "assistant", "content": "a", "reasoning_content": "r", "reasoning": "s"}],
            [USER, {"role": "assistant", "content": "a", "reasoning": "s"}],
        ),
        ([], []),
    ],
)
def test_messages_become_renderable(messages, expected):
    body = {"messages": messages}
    before = copy.deepcopy(messages)
    normalise(body, strict=False)
    assert body["messages"] == expected
    assert messages == before  # A request that is refused and sent again is made from the same messages.


@pytest.mark.parametrize("messages", [None, 3, "x", {}, [1], [USER, None]])
@pytest.mark.parametrize("strict", [True, False])
def test_what_is_malformed_is_left_for_the_backend(messages, strict):
    body = {"messages": messages}
    normalise(body, strict=strict)
    assert body == {"messages": messages}


def test_strict_messages_leave_the_roles_alone():
    messages = [said(SYSTEM, "a"), said(DEVELOPER, "b"), USER, said(SYSTEM, "c")]
    body = {"messages": messages}
    normalise(body, strict=True)
    assert body["messages"] == messages


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"input": "Hi"}, {"input": "Hi"}),
        ({"input": [said(SYSTEM, "a"), USER]}, {"instructions": "a", "input": [USER]}),
        (
            {"instructions": "0", "input": [said(DEVELOPER, "a"), said(SYSTEM, text("b")), USER, said(SYSTEM, "c")]},
            {"instructions": "0\n\na\n\nb", "input": [USER, said("user", "c")]},
        ),
        ({"input": [said(SYSTEM, IMAGE), USER]}, {"input": [said(SYSTEM, IMAGE), USER]}),
        ({"instructions": "0", "input": [USER]}, {"instructions": "0", "input": [USER]}),
        ({"input": [{"type": "function_call", "name": "f"}]}, {"input": [{"type": "function_call", "name": "f"}]}),
        ({"input": [3]}, {"input": [3]}),
    ],
)
def test_the_input_of_responses_keeps_one_system_message(body, expected):
    normalise_input(body)
    assert body == expected


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"reasoning_effort": "none"},
        {"reasoning_effort": "high"},
        {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"documents": [{"title": "t", "text": "x"}]},
    ],
)
def test_tokenize_gives_the_template_what_chat_gives_it(chosen, default):
    """vLLM adds a chat request's effort, mode and documents to the template's variables; to /tokenize it adds none."""
    fills = RequestDefaults(ProxySettings("http://127.0.0.1:1", enable_thinking=default))
    messages = [said(DEVELOPER, "a"), said(SYSTEM, "b"), USER, {"role": "assistant", "content": None}]
    chat, tokenize = {"messages": messages, **chosen}, {"messages": messages, **chosen}
    fills.chat(chat)
    fills.tokenize(tokenize)
    assert tokenize["messages"] == chat["messages"]
    given = dict(chat.get("chat_template_kwargs", {}))
    effort = chat.get("reasoning_effort")
    given.update({name: chat[name] for name in ("reasoning_effort", "documents") if name in chat})
    if effort is not None:
        given.setdefault("enable_thinking", effort != "none")
    assert tokenize["chat_template_kwargs"] == given


@pytest.mark.parametrize(
    ("chosen", "thinks"),
    [
        ({}, True),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, True),
        ({"thinking": {"type": "adaptive"}}, True),
        ({"thinking": 3}, True),
    ],
)
def test_anthropics_clients_choose_the_mode_by_their_own_field(chosen, thinks):
    fills = RequestDefaults(ProxySettings("http://127.0.0.1:1"))
    body, counted = dict(chosen), dict(chosen)
    fills.messages(body)
    fills.count_tokens(counted)
    assert body["chat_template_kwargs"] == counted["chat_template_kwargs"] == {"enable_thinking": thinks}
    assert body["temperature"] == (1.0 if thinks else 0.7)
    assert "temperature" not in counted


@pytest.mark.parametrize(
    ("body", "carried"),
    [
        ({}, None),
        ({"thinking": {"type": "disabled"}}, {"sampling.presence_penalty": 1.5}),
        ({"thinking": {"type": "disabled"}, "temperature": 0}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, {"sampling.thinking_token_budget": 5}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 5}, "vllm_xargs": {"a": 1}},
            {"sampling.thinking_token_budget": 5, "a": 1},
        ),
        ({"thinking": {"type": "disabled", "budget_tokens": 5}, "temperature": 0}, None),
        ({"thinking": {"type": "disabled"}, "vllm_xargs": 3}, 3),
    ],
)
def test_what_messages_have_no_field_for_is_carried_beside_them(body, carried):
    filled = dict(body)
    RequestDefaults(ProxySettings("http://127.0.0.1:1")).messages(filled)
    assert filled.get("vllm_xargs") == carried
