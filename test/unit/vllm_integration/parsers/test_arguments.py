"""Arguments take the types of their schema."""

import pytest

from vllm_integration.parsers.arguments import Parameters

SCHEMA = {
    "type": "object",
    "$defs": {
        "Days": {"type": "integer", "minimum": 1},
        "Unit": {"enum": ["metric", "imperial"]},
        "Place": {
            "type": "object",
            "properties": {"zip": {"type": "string"}, "floor": {"type": "integer"}, "in": {"$ref": "#/$defs/Place"}},
        },
        "Loop": {"$ref": "#/$defs/Loop"},
        "a/b": {"type": "boolean"},
    },
    "definitions": {"Old": {"type": "number"}},
    "properties": {
        "string": {"type": "string"},
        "integer": {"type": "integer"},
        "number": {"type": "number"},
        "boolean": {"type": "boolean"},
        "nothing": {"type": "null"},
        "array": {"type": "array"},
        "object": {"type": "object"},
        "any": {},
        "true": True,
        "days": {"$ref": "#/$defs/Days"},
        "unit": {"$ref": "#/$defs/Unit"},
        "place": {"$ref": "#/$defs/Place"},
        "loop": {"$ref": "#/$defs/Loop"},
        "escaped": {"$ref": "#/$defs/a~1b"},
        "old": {"$ref": "#/definitions/Old"},
        "lost": {"$ref": "#/$defs/Nowhere"},
        "maybe_text": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "maybe_days": {"anyOf": [{"$ref": "#/$defs/Days"}, {"type": "null"}], "default": None},
        "listed": {"type": ["integer", "null"]},
        "nullable": {"type": "number", "nullable": True},
        "either": {"oneOf": [{"type": "integer"}, {"type": "string"}]},
        "all": {"allOf": [{"$ref": "#/$defs/Days"}], "description": "as pydantic once wrote it"},
        "mixed": {"enum": ["auto", 1, 2, None, True]},
        "constant": {"const": 7},
        "words": {"type": "array", "items": {"type": "string"}},
        "counts": {"type": "array", "items": {"$ref": "#/$defs/Days"}},
        "pair": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}]},
        "places": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/Place"}}, {"type": "null"}]},
        "untyped": {"properties": {"n": {"type": "integer"}}},
        "map": {"type": "object", "additionalProperties": {"type": "number"}},
    },
}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        # A declared string stays a string.
        *(
            (name, text, text)
            for name in ("string",)
            for text in ("007", "10", "true", "null", "{}", "[1]", '"x"', " y ")
        ),
        ("string", "", ""),
        ("integer", "10", 10),
        ("integer", "-3", -3),
        ("integer", "10.0", 10),
        ("integer", "1e3", 1000),
        ("integer", " 4\n", 4),
        ("integer", "007", 7),
        ("integer", '"12"', 12),
        ("integer", "1.5", "1.5"),  # Nothing that the schema allows: the caller must refuse it.
        ("integer", "ten", "ten"),
        ("integer", "1_000", "1_000"),
        ("integer", str(2**70), 2**70),
        ("number", "10", 10),
        ("number", "2.50", 2.5),
        ("number", ".5", 0.5),
        ("number", "NaN", "NaN"),
        ("number", "1e999", "1e999"),
        ("boolean", "true", True),
        ("boolean", "False", False),
        ("boolean", "yes", "yes"),
        ("nothing", "null", None),
        ("array", '[1, "a", null]', [1, "a", None]),
        ("array", "[1, 'a', None, True]", [1, "a", None, True]),
        ("array", "[" * 100_000, "[" * 100_000),
        ("array", "{1, 2}", "{1, 2}"),
        ("object", '{"a": 1.0}', {"a": 1}),
        ("object", "{'a': True}", {"a": True}),
        ("object", "[1]", "[1]"),
        ("any", "5", 5),
        ("any", "five", "five"),
        ("any", "null", None),
        ("true", "[1]", [1]),
        ("undeclared", '{"a": [1]}', {"a": [1]}),
        ("days", "3", 3),
        ("unit", "metric", "metric"),
        ("unit", "\n metric ", "metric"),
        ("place", '{"zip": "007", "floor": 2}', {"zip": "007", "floor": 2}),
        ("place", '{"zip": 10115, "floor": "2"}', {"zip": "10115", "floor": 2}),
        ("place", '{"zip": 1.10}', {"zip": "1.10"}),
        ("place", '{"in": {"zip": 5, "in": {"floor": "3"}}}', {"in": {"zip": "5", "in": {"floor": 3}}}),
        ("loop", "5", 5),
        ("escaped", "true", True),
        ("old", "1.5", 1.5),
        ("lost", "5", 5),
        ("maybe_text", "null", None),
        ("maybe_text", "None", "None"),
        ("maybe_text", "007", "007"),
        ("maybe_text", "10", "10"),
        ("maybe_days", "null", None),
        ("maybe_days", "None", None),
        ("maybe_days", "10", 10),
        ("listed", "null", None),
        ("listed", "2", 2),
        ("nullable", "null", None),
        ("nullable", "2.5", 2.5),
        ("either", "10", 10),
        ("either", "007", "007"),
        ("either", "ten", "ten"),
        ("all", "3", 3),
        ("mixed", "auto", "auto"),
        ("mixed", "2", 2),
        ("mixed", "null", None),
        ("mixed", "true", True),
        ("constant", "7", 7),
        ("words", '["1", 2, true]', ["1", "2", "true"]),
        ("counts", '[1, "2"]', [1, 2]),
        ("pair", '[7, "8"]', ["7", 8]),
        ("places", '[{"zip": 1}]', [{"zip": "1"}]),
        ("places", "null", None),
        ("untyped", '{"n": "4"}', {"n": 4}),
        ("map", '{"a": "1.5"}', {"a": 1.5}),
    ],
)
def test_a_text_becomes_what_the_schema_declares(name, text, value):
    got = Parameters(SCHEMA).value(name, text)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("root", [None, True, {}, {"properties": None}, {"type": "object", "properties": {"x": 5}}])
def test_a_schema_that_says_nothing(root):
    assert Parameters(root).value("x", "5") == 5
    assert Parameters(root).value("x", "word") == "word"


def test_the_parameters_themselves_may_be_a_reference():
    schema = {"$ref": "#/$defs/Args", "$defs": {"Args": {"properties": {"code": {"type": "string"}}}}}
    assert Parameters(schema).value("code", "10") == "10"
    assert Parameters(schema).names() == {"code"}


def test_plain_text_is_what_may_be_any_string():
    parameters = Parameters(SCHEMA)
    assert parameters.is_plain_text("string")
    for name in ("unit", "maybe_text", "either", "any", "undeclared", "integer"):
        assert not parameters.is_plain_text(name)


def test_a_hostile_schema_ends():
    deep: dict = {"type": "integer"}
    for _ in range(200):
        deep = {"anyOf": [deep, {"type": "null"}]}
    assert Parameters({"properties": {"x": deep}}).value("x", "3") == 3
