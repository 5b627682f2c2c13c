"""Both parsers as vLLM's server runs them: whole answers, and streamed ones in pieces."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager

from vllm_integration import parsers
from vllm_integration.parsers.reasoning import QwenReasoningParser
from vllm_integration.parsers.tools import QwenToolParser

THINKING = "<|im_start|>assistant\n<think>\n"
PLAIN = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "book",
            "parameters": {
                "type": "object",
                "$defs": {"Seats": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
                "properties": {"code": {"type": "string"}, "seats": {"$ref": "#/$defs/Seats"}},
            },
        },
    },
    {"type": "function", "function": {"name": "wait"}},
]
BOOK = (
    "<tool_call>\n<function=book>\n<parameter=code>\n007\n</parameter>\n<parameter=seats>\n10\n</parameter>\n"
    "</function>\n</tool_call>"
)
WAIT = "<tool_call>\n<function=wait>\n</function>\n</tool_call>"
BOOKED = ("book", {"code": "007", "seats": 10})


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(Path(__file__).parents[4] / "assets" / "demo-checkpoint")


@pytest.fixture(scope="module")
def parser_class() -> Any:
    parsers.register()
    return ParserManager.get_parser(parsers.NAME, parsers.NAME, enable_auto_tools=True)


@pytest.fixture
def ask(tokenizer, parser_class):
    """`ask(output, prompt, stream=False)`: what a client gets of an output. Each stream is cut at other places."""

    def run(output: str, prompt: str, *, stream: bool, template: Any = None, **fields: Any) -> SimpleNamespace:
        request = ChatCompletionRequest(**{"messages": [{"role": "user", "content": "?"}], **fields})
        options = {"chat_template_kwargs": template or {}}
        parser_class(tokenizer, request.tools, **options).adjust_request(request)
        prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
        parser = parser_class(tokenizer, request.tools, **options)
        if not stream:
            if request.include_reasoning:
                parser.is_reasoning_end(prompt_ids)
            reasoning, content, calls = parser.parse(output, request, enable_auto_tools=True)
            if not request.include_reasoning:
                reasoning = None
            calls = [(call.name, json.loads(call.arguments)) for call in calls or []]
            if request.parallel_tool_calls is False:
                calls = calls[:1]
            return SimpleNamespace(reasoning=reasoning or "", content=content or "", calls=calls)
        return streamed(parser, request, prompt_ids, output)

    def streamed(parser: Any, request: Any, prompt_ids: list[int], output: str) -> SimpleNamespace:
        numbers = random.Random(len(output))
        cuts = sorted({0, len(output), *numbers.sample(range(len(output) + 1), k=len(output) // 3)})
        reasoning, content, calls = "", "", {}
        for start, end in itertools.pairwise(cuts):
            ids = tokenizer(output[start:end], add_special_tokens=False).input_ids
            delta = parser.parse_delta(output[start:end], ids, request, prompt_ids, finished=end == len(output))
            if delta is None:
                continue
            reasoning, content = reasoning + (delta.reasoning or ""), content + (delta.content or "")
            for call in delta.tool_calls:
                if call.index not in calls:
                    assert call.id
                    calls[call.index] = [call.function.name, ""]
                else:
                    assert call.id is None
                    assert call.function.name is None
                calls[call.index][1] += call.function.arguments or ""
        assert list(calls) == list(range(len(calls)))
        called = [(name, json.loads(arguments)) for name, arguments in calls.values()]
        return SimpleNamespace(reasoning=reasoning, content=content, calls=called)

    return run


def test_the_parsers_are_known_and_vllms_own_stay():
    parsers.register()
    assert ReasoningParserManager.get_reasoning_parser(parsers.NAME) is QwenReasoningParser
    assert ToolParserManager.get_tool_parser(parsers.NAME) is QwenToolParser
    assert ReasoningParserManager.get_reasoning_parser("qwen3").__module__.startswith("vllm.")
    for name in ("qwen3_coder", "qwen3_xml"):
        assert ToolParserManager.get_tool_parser(name).__module__.startswith("vllm.")


def test_the_parsers_are_the_servers_default():
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    chosen = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    assert (chosen.reasoning_parser, chosen.tool_call_parser) == (parsers.NAME, parsers.NAME)
    assert chosen.enable_auto_tool_choice
    named = ["--reasoning-parser", "qwen3", "--tool-call-parser", "qwen3_xml"]
    chosen = make_arg_parser(FlexibleArgumentParser()).parse_args(named)
    assert (chosen.reasoning_parser, chosen.tool_call_parser) == ("qwen3", "qwen3_xml")


def test_a_tokenizer_without_think_tags_is_refused():
    with pytest.raises(RuntimeError, match="<think>"):
        QwenReasoningParser(SimpleNamespace(get_vocab=dict))


STREAM = pytest.mark.parametrize("stream", [False, True])


@STREAM
def test_thoughts_then_an_answer(ask, stream):
    got = ask("Hm, so.\n</think>\n\nYes.", THINKING, stream=stream)
    assert (got.reasoning, got.content) == ("Hm, so.\n", "Yes.")


@STREAM
@pytest.mark.parametrize("prompt", [PLAIN, PLAIN + "I say", "Hello", "<think>old</think> <|im_end|> x"])
def test_a_prompt_whose_last_think_tag_does_not_open_gives_content(ask, prompt, stream):
    got = ask(" more of it", prompt, stream=stream)
    assert (got.reasoning, got.content) == ("", " more of it")


@STREAM
def test_a_continued_thought_is_reasoning(ask, stream):
    got = ask(" more.</think>\n\nYes.", PLAIN + "<think>\nI think", stream=stream)
    assert (got.reasoning, got.content) == (" more.", "Yes.")


TEXTS = [
    "<think>no thought</think> and <tool_call> or <function=x> text",
    '{"html": "<tool_call>\\n<function=book>", "tag": "</think>"}',
    f"Example:\n\n{BOOK}\n",
    "\n leading and trailing \n",
    "</think>",
]


@STREAM
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("choice", [{}, {"tool_choice": "none"}, {"tool_choice": None}])
def test_tags_are_text_where_nothing_is_thought_or_called(ask, text, choice, stream):
    got = ask(text, PLAIN, stream=stream, **choice)
    assert (got.reasoning, got.content, got.calls) == ("", text, [])


@STREAM
def test_tags_are_text_where_calls_are_forbidden(ask, stream):
    got = ask(BOOK, PLAIN, stream=stream, tools=TOOLS, tool_choice="none")
    assert (got.content, got.calls) == (BOOK, [])


@STREAM
@pytest.mark.parametrize("thoughts", ["", "Hm.\n</think>\n\n"])
def test_two_calls_after_text(ask, thoughts, stream):
    output = f"{thoughts}I book.\n\n{BOOK}\n{WAIT}"
    got = ask(output, THINKING if thoughts else PLAIN, stream=stream, tools=TOOLS)
    assert got.content == "I book."
    assert got.calls == [BOOKED, ("wait", {})]
    assert got.reasoning == ("Hm.\n" if thoughts else "")


@STREAM
def test_one_call_where_only_one_is_wanted(ask, stream):
    got = ask(f"{BOOK}\n{WAIT}", PLAIN, stream=stream, tools=TOOLS, parallel_tool_calls=False)
    assert got.calls == [BOOKED]


@STREAM
@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "book"}}])
def test_every_way_to_choose_a_tool(ask, choice, stream):
    got = ask(BOOK, PLAIN, stream=stream, tools=TOOLS, tool_choice=choice)
    assert got.calls == [BOOKED]


@STREAM
def test_a_call_that_the_model_makes_within_its_thoughts(ask, stream):
    got = ask(f"I book now.\n{BOOK}", THINKING, stream=stream, tools=TOOLS)
    assert (got.reasoning, got.content, got.calls) == ("I book now.\n", "", [BOOKED])
    got = ask(f"I could write\n{BOOK}\nthen.</think>\n\nNo.", THINKING, stream=stream, tools=TOOLS)
    assert (got.reasoning, got.content, got.calls) == (f"I could write\n{BOOK}\nthen.", "No.", [])
    got = ask(f"I could write\n{BOOK}", THINKING, stream=stream)
    assert (got.reasoning, got.calls) == (f"I could write\n{BOOK}", [])


@STREAM
@pytest.mark.parametrize(
    ("prompt", "template", "output", "content"),
    [
        (THINKING, {}, "Hm.\n</think>\n\nYes.", "Yes."),
        (THINKING, {"enable_thinking": True}, 'Hm.</think>\n\n{"a": 1}', '{"a": 1}'),
        (PLAIN, {"enable_thinking": False}, "Yes, </think>.", "Yes, </think>."),
        (PLAIN + "So", {"continue_final_message": True, "add_generation_prompt": False}, " it is.", " it is."),
    ],
)
def test_hidden_reasoning_hides_nothing_else(ask, prompt, template, output, content, stream):
    got = ask(output, prompt, stream=stream, template=template, include_reasoning=False)
    assert (got.reasoning, got.content) == ("", content)


@STREAM
@pytest.mark.parametrize(("included", "content"), [(False, "One, "), (True, "One, END")])
def test_a_stop_string_is_looked_for_in_the_answer(ask, included, content, stream):
    output = "END is not the END\n</think>\n\nOne, END of"
    got = ask(output, THINKING, stream=stream, stop=["END", "\n"], include_stop_str_in_output=included)
    assert (got.reasoning, got.content) == ("END is not the END\n", content)


@STREAM
def test_a_stop_string_ends_an_answer_with_tools(ask, stream):
    got = ask(f"x</think>\n\nOne.\n\n{BOOK}\nEND", THINKING, stream=stream, stop="END", tools=TOOLS)
    assert (got.content, got.calls) == ("One.", [BOOKED])


def test_reasoning_tokens_are_counted(tokenizer, parser_class):
    ids = tokenizer("one two</think>three", add_special_tokens=False).input_ids
    thoughts = len(tokenizer("one two", add_special_tokens=False).input_ids)
    for prompt, expected in ((THINKING, thoughts), (PLAIN, 0)):
        parser = parser_class(tokenizer, None, chat_template_kwargs={})
        parser.is_reasoning_end(tokenizer(prompt, add_special_tokens=False).input_ids)
        assert parser.count_reasoning_tokens(ids) == expected
        assert parser.count_reasoning_tokens(ids[:1]) == (1 if expected else 0)


def test_one_forced_call_where_only_one_is_wanted(tokenizer, parser_class):
    for parallel in (True, False):
        request = ChatCompletionRequest(
            messages=[{"role": "user", "content": "?"}],
            tools=TOOLS,
            tool_choice="required",
            parallel_tool_calls=parallel,
        )
        parser_class(tokenizer, request.tools, chat_template_kwargs={}).adjust_request(request)
        tag = json.loads(request.structured_outputs.structural_tag)
        assert tag["format"]["stop_after_first"] is not parallel


@pytest.mark.parametrize("option", [True, False])
def test_one_option_leaves_stop_strings_to_vllm(tokenizer, parser_class, monkeypatch, option):
    monkeypatch.setattr("vllm_integration.platform.QwenPlatform.stop_in_reasoning", option)
    request = ChatCompletionRequest(messages=[{"role": "user", "content": "?"}], stop=["END"])
    parser_class(tokenizer, None, chat_template_kwargs={}).adjust_request(request)
    assert request.stop == (["END"] if option else [])
    assert bool(request.vllm_xargs) is not option
