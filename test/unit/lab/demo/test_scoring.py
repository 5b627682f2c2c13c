"""What counts as right, as valid and as a loop."""

from __future__ import annotations

from random import Random

import pytest

from qwen36_lab.demo.chat import ToolCall
from qwen36_lab.demo.coherence import loops
from qwen36_lab.demo.filler import sentence
from qwen36_lab.demo.measure import valid_call
from qwen36_lab.demo.structured import TOOLS

SCHEMAS = [schema for schema, _ in TOOLS.values()]


@pytest.mark.parametrize(
    ("name", "arguments", "valid"),
    [
        ("set_light", {"room": "hall", "on": True}, True),
        ("set_light", {"room": "hall", "on": "maybe"}, False),
        ("set_light", {"room": "hall"}, False),
        ("set_light", {"room": "hall", "on": True, "color": "red"}, False),
        ("set_timer", {"minutes": 5, "label": "tea"}, True),
        ("set_timer", {"minutes": "5.5", "label": "tea"}, False),
        ("open_door", {}, False),
    ],
)
def test_a_call_is_valid_by_its_schema(name: str, arguments: dict[str, str | int | bool], valid: bool) -> None:
    text = ToolCall(name, arguments).text()
    assert valid_call(text, SCHEMAS) is valid
    assert not valid_call(text.removesuffix("</tool_call>"), SCHEMAS)
    assert not valid_call(f"Let me see. {text}", SCHEMAS)


def test_enumerations_are_kept_to() -> None:
    schema = [TOOLS["get_weather"][0]]
    assert valid_call(ToolCall("get_weather", {"city": "Oslo", "unit": "celsius"}).text(), schema)
    assert not valid_call(ToolCall("get_weather", {"city": "Oslo", "unit": "kelvin"}).text(), schema)


@pytest.mark.parametrize("unit", ["a", "and then ", "The cat sat on the mat. It slept. ", "x" * 100 + " "])
def test_a_repeated_end_is_a_loop(unit: str) -> None:
    start = "Once upon a time there was a fox. "
    assert loops(start + unit * 60)
    assert not loops(start + unit * 60 + "But that was not the end of the story, since the fox woke up.")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ha ha ha ha",
        ", ".join(str(n) for n in range(1, 200)),
        " ".join(map(sentence, [Random(1)] * 50)),
        "ab ab ab",
    ],
)
def test_text_is_not_a_loop(text: str) -> None:
    assert not loops(text)
