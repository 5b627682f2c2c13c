"""Grammars are refused when they are read if the engine core would fail at them, and served if it would not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

from vllm_integration.grammars import MAX_GRAMMAR_CHARS, check_grammar


def check(backend: str = "xgrammar", other: dict[str, Any] | None = None, **wanted: Any) -> None:
    outputs = StructuredOutputsParams(**wanted)
    outputs._backend = backend
    check_grammar(SamplingParams(structured_outputs=outputs, **(other or {})))


TAG = {"structures": [{"begin": "a", "schema": {"type": 3}, "end": "b"}], "triggers": ["a"]}
TREE = {"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}


@pytest.mark.parametrize(
    "wanted",
    [
        {"regex": "[a-z]{3}"},
        {"regex": "(a*)*"},
        {"regex": "[a-z]{1000000}"},
        {"grammar": 'root ::= "a" root | ""'},
        {"grammar": 'root ::= root "a" | "b"'},
        {"grammar": 'root ::= (b){0,3} "c"\nb ::= "b"'},
        {"json": {"type": "array", "items": {"type": "string"}, "minItems": 10**9}},
        {"json": TREE},
        {"json": json.dumps(TREE)},
        {"json": {"type": "array", "items": {"$ref": "#"}}},
        {"json": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}}},
        {"json": {"enum": [f"value {i}" for i in range(1000)]}},
        {"json_object": True},
    ],
    ids=lambda wanted: json.dumps(wanted)[:50],
)
def test_what_the_engine_core_can_do_passes(wanted):
    check(**wanted)


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"regex": "(?i)yes|no"}, "Group modifier flag"),
        ({"regex": r"\p{L}+"}, "Unicode character class"),
        ({"regex": "(?=a)b"}, "Lookahead"),
        ({"regex": "(a)\\1"}, "Backreference"),
        ({"regex": "a**"}, "repetition"),
        ({"regex": "(" * 2000 + "a" + ")" * 2000}, "Nest layer"),
        ({"json": {"type": "string", "pattern": "(?i)a"}}, "Group modifier flag"),
        ({"json": {"type": "bogus"}}, "bogus"),
        ({"json": {"type": "integer", "minimum": 5, "maximum": 1}}, "Invalid range"),
        ({"json": {"$ref": "#/$defs/none"}}, "$defs"),
        ({"grammar": "root ::= none"}, "none"),
        ({"structural_tag": json.dumps(TAG)}, "ype"),
        ({"json": {"enum": [f"value {i}" for i in range(20_000)]}}, str(MAX_GRAMMAR_CHARS)),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_it_cannot_do_is_refused_and_the_problem_is_named(wanted, problem):
    with pytest.raises(VLLMValidationError) as caught:
        check(**wanted)
    assert problem in str(caught.value)
    assert ".cc:" not in str(caught.value)


@pytest.mark.parametrize(
    "wanted",
    [
        {"grammar": "root ::= root"},
        {"grammar": "root ::= a\na ::= b\nb ::= a"},
        {"grammar": 'root ::= "x" | "a" b\nb ::= b'},
        {"grammar": "root ::= (b){1,3}\nb ::= b"},
        {"json": {"$ref": "#"}},
        {"json": {**TREE, "required": ["left"]}},
        {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}}},
    ],
    ids=lambda wanted: json.dumps(wanted)[:60],
)
def test_what_can_never_end_is_refused(wanted):
    with pytest.raises(VLLMValidationError, match="never be fulfilled"):
        check(**wanted)


@pytest.mark.parametrize("other", [{"allowed_token_ids": [5]}, {"bad_words": ["a"]}])
def test_a_grammar_is_not_combined_with_what_may_leave_no_token(other):
    with pytest.raises(VLLMValidationError, match=next(iter(other))):
        check(other=other, regex="[a-z]")


def test_another_back_end_checks_for_itself():
    check(backend="guidance", regex="(?i)yes|no")
