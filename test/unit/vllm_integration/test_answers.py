"""The scheduler's view of reasoning: where grammars begin to hold and stop strings to count."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from vllm_integration.answers import Answers
from vllm_integration.parsers.reasoning import QwenReasoningParser
from vllm_integration.parsers.stops import ANSWER_STOP


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(Path(__file__).parents[3] / "assets" / "demo-checkpoint")


@pytest.fixture
def answers(tokenizer) -> Answers:
    return Answers(SimpleNamespace(reasoner_cls=QwenReasoningParser, tokenizer=tokenizer))


@pytest.fixture
def made(tokenizer):
    def build(prompt: str, *, name: str = "chatcmpl-1", stops: Any = None, ended: bool | None = None) -> Any:
        return SimpleNamespace(
            request_id=name,
            prompt_token_ids=tokenizer(prompt, add_special_tokens=False).input_ids,
            structured_output_request=SimpleNamespace(reasoning_ended=ended),
            sampling_params=SimpleNamespace(extra_args={ANSWER_STOP: stops} if stops else None),
        )

    return build


OPEN = "<|im_start|>assistant\n<think>\n"


@pytest.mark.parametrize(
    ("prompt", "name", "ended"),
    [
        (OPEN, "chatcmpl-1", False),
        (OPEN + "\n</think>\n\n", "chatcmpl-1", True),
        ("Hello", "chatcmpl-1", True),
        ("Hello", "cmpl-1-0", True),
        (OPEN, "cmpl-1-0", True),  # A completion's whole text obeys its grammar.
        (OPEN, "1_cmpl-1-0", True),  # One of several choices.
        (OPEN, "1_chatcmpl-1", False),
        (OPEN, "resp_1", False),
        (OPEN, "7", False),  # A request of LLM.chat.
    ],
)
@pytest.mark.parametrize("said", [None, True, False])
def test_where_a_grammar_begins(answers, made, prompt, name, ended, said):
    request = made(prompt, name=name, ended=said)
    answers.admit(request)
    assert request.structured_output_request.reasoning_ended is ended


def test_vllms_own_parsers_are_left_alone(tokenizer, made):
    request = made("Hello", ended=False)
    Answers(SimpleNamespace(reasoner_cls=object, tokenizer=tokenizer)).admit(request)
    assert request.structured_output_request.reasoning_ended is False


def found(answers: Answers, request: Any, tokens: list[int]) -> Any:
    for i, token in enumerate(tokens):
        stop = answers.stop_of(request, [token])
        if stop is not None:
            return i, stop[1]
    return None


@pytest.mark.parametrize(
    ("prompt", "output", "stops", "text", "stop"),
    [
        (OPEN, "END of\n</think>\n\nAn END.", ["END"], "END of\n</think>\n\nAn END", "END"),
        (OPEN, "\n</think>\n\nA\nB", ["\n"], "\n</think>\n\nA\n", "\n"),
        (OPEN, "no END", ["END"], None, None),
        (OPEN + "</think>", "\nEND", ["END"], "\nEND", "END"),
        (OPEN + "</think>", "A\n", ["\n"], "A\n", "\n"),
    ],
)
def test_a_stop_string_counts_in_the_answer(answers, made, tokenizer, prompt, output, stops, text, stop):
    request = made(prompt, stops=stops)
    answers.admit(request)
    tokens = tokenizer(output, add_special_tokens=False).input_ids
    got = found(answers, request, tokens)
    if stop is None:
        assert got is None
    else:
        assert got[1] == stop
        # It ends with the token that completes it, and not one later.
        assert text in tokenizer.decode(tokens[: got[0] + 1])
        assert text not in tokenizer.decode(tokens[: got[0]])
    answers.forget(request)
    assert answers.stop_of(request, tokens) is None


def test_a_request_without_stops_is_not_watched(answers, made):
    request = made(OPEN)
    answers.admit(request)
    assert answers.stop_of(request, [1, 2]) is None
