"""What a client gets of the demo checkpoint: thoughts, answers, grammars, stops and budgets, whole and streamed."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

pytestmark = pytest.mark.http

QUESTION = [{"role": "user", "content": "What is 17 + 25?"}]
THOUGHTS = "ones: 7 + 5 = 12, write 2, carry 1; tens: 1 + 2 + 1 = 4, write 4. Together 42."
ANSWER = "17 + 25 = 42"
OFF = {"chat_template_kwargs": {"enable_thinking": False}}
SCHEMA = {
    "type": "object",
    "properties": {"sum": {"enum": [41, 42]}},
    "required": ["sum"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA}}
STREAM = pytest.mark.parametrize("stream", [False, True])


def ask(server: Any, stream: bool, **fields: Any) -> SimpleNamespace:
    """A greedy chat answer."""
    body = {"model": "tiny", "messages": QUESTION, "max_tokens": 120, "temperature": 0, **fields}
    got = SimpleNamespace(reasoning="", twin="", content="", calls={}, finish_reason=None, stop_reason=None, usage=None)

    def take(choice: dict[str, Any], part: dict[str, Any]) -> None:
        got.reasoning += part.get("reasoning") or ""
        got.twin += part.get("reasoning_content") or ""
        got.content += part.get("content") or ""
        for i, call in enumerate(part.get("tool_calls") or []):
            kept = got.calls.setdefault(call.get("index", i), {"ids": [], "names": [], "arguments": ""})
            kept["ids"] += [call["id"]] if call.get("id") else []
            kept["names"] += [call["function"]["name"]] if call["function"].get("name") else []
            kept["arguments"] += call["function"].get("arguments") or ""
        got.finish_reason = choice["finish_reason"] or got.finish_reason
        got.stop_reason = choice.get("stop_reason") or got.stop_reason

    if not stream:
        response = server.http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        answer = response.json()
        take(answer["choices"][0], answer["choices"][0]["message"])
        got.usage = answer["usage"]
    else:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    for choice in chunk["choices"]:
                        take(choice, choice["delta"])
                    got.usage = chunk.get("usage") or got.usage
    assert got.twin == got.reasoning
    return got


@STREAM
def test_thoughts_and_answer(demo, stream):
    got = ask(demo, stream)
    assert (got.reasoning.strip(), got.content, got.finish_reason) == (THOUGHTS, ANSWER, "stop")
    assert got.usage["completion_tokens_details"]["reasoning_tokens"] > 0
    got = ask(demo, stream, **OFF)
    assert (got.reasoning, got.content) == ("", ANSWER)
    assert got.usage["completion_tokens_details"]["reasoning_tokens"] == 0


@STREAM
@pytest.mark.parametrize(
    "mode", [{}, OFF, {"chat_template_kwargs": {"enable_thinking": True}}, {"include_reasoning": False}]
)
def test_a_continued_message_is_content(demo, mode, stream):
    messages = [*QUESTION, {"role": "assistant", "content": "17 + 25 ="}]
    got = ask(demo, stream, messages=messages, continue_final_message=True, add_generation_prompt=False, **mode)
    assert (got.reasoning, got.content) == ("", " 42")


@STREAM
@pytest.mark.parametrize("constraint", [{}, {"response_format": FORMAT}])
def test_hidden_reasoning_hides_nothing_else(demo, constraint, stream):
    shown, hidden = (ask(demo, stream, include_reasoning=include, **constraint) for include in (True, False))
    assert shown.reasoning.strip() == THOUGHTS
    assert hidden.reasoning == ""
    assert hidden.content == shown.content
    assert hidden.usage["completion_tokens"] == shown.usage["completion_tokens"]
    assert hidden.finish_reason == shown.finish_reason
    if constraint:
        jsonschema.validate(json.loads(hidden.content), SCHEMA)


@STREAM
def test_a_stop_string_is_looked_for_in_the_answer(demo, stream):
    assert " 4" in THOUGHTS
    got = ask(demo, stream, stop=[" 4", "carry"])
    assert (got.reasoning.strip(), got.content) == (THOUGHTS, "17 + 25 =")
    assert (got.finish_reason, got.stop_reason) == ("stop", " 4")
    got = ask(demo, stream, stop=" 4", include_stop_str_in_output=True)
    assert got.content == "17 + 25 = 4"
    got = ask(demo, stream, stop="carry", vllm_xargs={"stop_in_reasoning": 1})
    assert (got.reasoning, got.content, got.stop_reason) == (THOUGHTS.split("carry")[0], "", "carry")
    got = ask(demo, stream, stop=" 4", **OFF)
    assert (got.content, got.stop_reason) == ("17 + 25 =", " 4")


@STREAM
@pytest.mark.parametrize("budget", [0, 1, 6])
def test_a_thinking_budget_is_kept(demo, budget, stream):
    got = ask(demo, stream, thinking_token_budget=budget)
    assert got.usage["completion_tokens_details"]["reasoning_tokens"] == budget
    assert THOUGHTS.startswith(got.reasoning)
    assert (got.content, got.finish_reason) == (ANSWER, "stop")


def test_a_thinking_budget_changes_nothing_that_keeps_it(demo):
    assert ask(demo, False, thinking_token_budget=100).content == ANSWER
    assert ask(demo, False, thinking_token_budget=3, **OFF).content == ANSWER
    answer = ask(demo, False, thinking_token_budget=2, logprobs=True, top_logprobs=1)
    assert answer.content == ANSWER
    bad = {"model": "tiny", "messages": QUESTION, "thinking_token_budget": -3}
    assert demo.http.post("/v1/chat/completions", json=bad).status_code == 400


@pytest.mark.parametrize("prompt", ["Hello", "the <think> tag", "<think>\n\n</think>\n\n", [5, 6, 7]])
@pytest.mark.parametrize(
    "constraint", [{"structured_outputs": {"regex": "abc def"}}, {"structured_outputs": {"choice": ["abc def"]}}]
)
def test_a_completion_obeys_its_grammar_from_the_first_token(demo, prompt, constraint):
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 40, "n": 2, **constraint}
    choices = demo.http.post("/v1/completions", json=body).json()["choices"]
    assert [choice["text"] for choice in choices] == ["abc def"] * 2
    texts = {0: "", 1: ""}
    for line in demo.http.post("/v1/completions", json={**body, "stream": True}).text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                texts[choice["index"]] += choice["text"]
    assert texts == {0: "abc def", 1: "abc def"}


def test_a_completion_obeys_its_response_format(demo):
    body = {"model": "tiny", "prompt": "Hello", "max_tokens": 90, "seed": 1, "response_format": FORMAT}
    text = demo.http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    jsonschema.validate(json.loads(text), SCHEMA)


@STREAM
def test_tags_are_text_where_nothing_is_thought_or_called(demo, stream):
    text = "a </think> b <think> c <tool_call> <function=x>"
    got = ask(demo, stream, structured_outputs={"choice": [text]}, **OFF)
    assert (got.reasoning, got.content) == ("", text)


@STREAM
@pytest.mark.parametrize("parallel", [True, False])
def test_two_calls_after_text(demo, parallel, stream):
    item = {"anyOf": [{"$ref": "#/$defs/Count"}, {"type": "null"}]}
    parameters = {
        "type": "object",
        "$defs": {"Count": {"type": "integer"}},
        "properties": {"code": {"type": "string"}, "counts": {"type": "array", "items": item}},
    }
    tools = [{"type": "function", "function": {"name": "book", "parameters": parameters}}]
    values = {"code": "007", "counts": "[10, null]"}
    given = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    call = f"<tool_call>\n<function=book>\n{given}</function>\n</tool_call>"
    output = f"I book twice.\n\n{call}\n{call}"
    got = ask(
        demo,
        stream,
        tools=tools,
        parallel_tool_calls=parallel,
        max_tokens=300,
        structured_outputs={"regex": re.escape(output).replace("\\\n", "\\n")},
        **OFF,
    )
    assert got.content == "I book twice."
    assert got.finish_reason == "tool_calls"
    assert list(got.calls) == ([0, 1] if parallel else [0])
    for made in got.calls.values():
        assert (len(made["ids"]), made["names"]) == (1, ["book"])
        assert json.loads(made["arguments"]) == {"code": "007", "counts": [10, None]}
    assert len({made["ids"][0] for made in got.calls.values()}) == len(got.calls)


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thoughts_of_the_history_are_read_by_either_name(demo, name):
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    history = [
        *QUESTION,
        {"role": "assistant", "content": "", name: "I think of a long way to add them.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    with_thoughts = ask(demo, False, messages=history, max_tokens=1).usage["prompt_tokens"]
    del history[1][name]
    assert with_thoughts > ask(demo, False, messages=history, max_tokens=1).usage["prompt_tokens"] + 5
