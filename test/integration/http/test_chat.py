"""Chat: modes, reasoning, structured output and tools, from a model that knows nothing of any of them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import jsonschema
import openai
import pytest
from transformers import AutoTokenizer

pytestmark = pytest.mark.http

PLAIN = {"chat_template_kwargs": {"enable_thinking": False}}
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Oslo", "Rome", "Lima"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "metric": {"type": "boolean"},
    },
    "required": ["city", "days", "metric"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "forecast", "schema": SCHEMA, "strict": True}}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "A forecast.", "parameters": SCHEMA}}
    for name in ("get_weather", "get_tides")
]


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint) -> Any:
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


def favour(tokenizer: Any, bias: float, *marks: str) -> dict[str, float]:
    """A logit bias towards marks that a trained model would write as one token each, and at their time."""
    return {str(tokenizer.convert_tokens_to_ids(mark)): bias for mark in marks}


def gather(stream: Any) -> Any:
    """A stream's deltas put together: reasoning, content, tool calls, finish reason."""
    reasoning, content, finish = "", "", None
    calls: dict[int, dict[str, str]] = {}
    for chunk in stream:
        for choice in chunk.choices:
            delta = choice.delta
            reasoning += getattr(delta, "reasoning", None) or ""
            content += delta.content or ""
            finish = choice.finish_reason or finish
            for call in delta.tool_calls or []:
                got = calls.setdefault(call.index, {"name": "", "arguments": ""})
                got["name"] += call.function.name or ""
                got["arguments"] += call.function.arguments or ""
    return SimpleNamespace(reasoning=reasoning, content=content, calls=list(calls.values()), finish_reason=finish)


def told(server, *, stream: bool, **options: Any) -> Any:
    """A chat answer in one form, streamed or not."""
    if stream:
        return gather(server.chat(stream=True, **options))
    choice = server.chat(**options).choices[0]
    calls = [
        {"name": call.function.name, "arguments": call.function.arguments} for call in choice.message.tool_calls or []
    ]
    return SimpleNamespace(
        reasoning=choice.message.reasoning or "",
        content=choice.message.content or "",
        calls=calls,
        finish_reason=choice.finish_reason,
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("thinks", [True, False, None])
def test_text_is_reasoning_until_thinking_ends(server, stream, thinks):
    chosen = {} if thinks is None else {"chat_template_kwargs": {"enable_thinking": thinks}}
    answer = told(server, stream=stream, temperature=0, max_tokens=12, extra_body={**chosen, "ignore_eos": True})
    assert bool(answer.reasoning) is (thinks is not False)  # Thinking is the published default.
    assert bool(answer.content) is (thinks is False)


def test_the_mode_changes_the_prompt_as_the_template_says(server, tokenizer):
    messages = [{"role": "user", "content": "Hi"}]
    for thinks in (True, False):
        kwargs = {"chat_template_kwargs": {"enable_thinking": thinks}}
        got = server.http.post("/tokenize", json={"model": "tiny", "messages": messages, **kwargs}).json()["tokens"]
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinks
        )
        assert got == tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_follows_the_end_of_thinking(server, tokenizer, stream):
    answer = told(
        server,
        stream=stream,
        seed=4,
        temperature=1.0,
        top_p=1.0,
        max_tokens=900,
        response_format=FORMAT,
        logit_bias=favour(tokenizer, 6, "</think>"),
        extra_body={"top_k": 0, "chat_template_kwargs": {"enable_thinking": True}},
    )
    assert "</think>" not in answer.reasoning + answer.content
    assert answer.reasoning
    jsonschema.validate(json.loads(answer.content), SCHEMA)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_structured_output_is_valid(server, stream, seed):
    answer = told(
        server, stream=stream, seed=seed, temperature=2.0, max_tokens=400, response_format=FORMAT, extra_body=PLAIN
    )
    assert answer.finish_reason == "stop"
    jsonschema.validate(json.loads(answer.content), SCHEMA)


@pytest.mark.parametrize("stream", [False, True])
def test_a_required_tool_is_called(server, stream):
    answer = told(server, stream=stream, seed=1, max_tokens=600, tools=TOOLS, tool_choice="required", extra_body=PLAIN)
    assert answer.calls
    for call in answer.calls:
        assert call["name"] in ("get_weather", "get_tides")
        # vLLM's grammar of this form allows blanks around a value, and a random model writes many.
        arguments = {k: v.strip() if isinstance(v, str) else v for k, v in json.loads(call["arguments"]).items()}
        jsonschema.validate(arguments, SCHEMA)


@pytest.mark.parametrize("stream", [False, True])
def test_a_named_tool_is_called(server, stream):
    choice = {"type": "function", "function": {"name": "get_tides"}}
    answer = told(server, stream=stream, seed=2, max_tokens=400, tools=TOOLS, tool_choice=choice, extra_body=PLAIN)
    (call,) = answer.calls
    assert call["name"] == "get_tides"
    jsonschema.validate(json.loads(call["arguments"]), SCHEMA)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_in_the_models_own_form_is_parsed(server, tokenizer, stream):
    pattern = (
        r"[a-z]{6}\n<tool_call>\n<function=get_weather>\n<parameter=city>\n(Oslo|Rome)\n</parameter>\n"
        r"<parameter=days>\n[1-9]\n</parameter>\n<parameter=metric>\ntrue\n</parameter>\n</function>\n</tool_call>"
    )
    answer = told(
        server,
        stream=stream,
        seed=3,
        max_tokens=300,
        tools=TOOLS,
        tool_choice="auto",
        logit_bias=favour(tokenizer, 100, "<tool_call>", "</tool_call>"),
        extra_body={**PLAIN, "structured_outputs": {"regex": pattern}},
    )
    (call,) = answer.calls
    arguments = json.loads(call["arguments"])
    assert call["name"] == "get_weather"
    jsonschema.validate(arguments, SCHEMA)  # Numbers and booleans too, as the tool's schema types them.
    assert arguments["metric"] is True
    assert answer.finish_reason == "tool_calls"
    assert len(answer.content.strip()) == 6
    assert "<" not in answer.content


@pytest.mark.parametrize("stream", [False, True])
def test_text_without_a_call_is_content(server, stream):
    answer = told(
        server,
        stream=stream,
        max_tokens=60,
        tools=TOOLS,
        extra_body={**PLAIN, "structured_outputs": {"regex": "[a-z]{10}"}},
    )
    assert answer.calls == []
    assert len(answer.content) == 10


def test_a_conversation_goes_on(server):
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
    for turn in range(4):
        messages.append({"role": "user", "content": f"Question {turn}"})
        answer = server.client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=40, seed=turn, extra_body={**PLAIN, "ignore_eos": True}
        )
        assert answer.usage.completion_tokens == 40
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})


def test_chat_logprobs(server):
    answer = server.chat(temperature=0, max_tokens=4, logprobs=True, top_logprobs=3, extra_body=PLAIN)
    for entry in answer.choices[0].logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs)


def test_an_image_is_refused(server):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError):
        server.client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [image]}])
