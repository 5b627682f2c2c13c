"""Calls in text cut anywhere: the same as in the whole."""

import json
import random

import pytest

from vllm_integration.parsers.calls import Arguments, Begin, CallScanner, Text

TOOLS = {
    "f": {"properties": {"text": {"type": "string"}, "n": {"type": "integer"}, "list": {"type": "array"}}},
    "g": None,
}


def scan(pieces, **options):
    """Text, and the calls' names and arguments."""
    scanner = CallScanner(TOOLS, **options)
    text, calls = "", []
    for piece in [p for part in pieces for p in scanner.feed(part)] + scanner.finish():
        if isinstance(piece, Text):
            text += piece.text
        elif isinstance(piece, Begin):
            assert piece.index == len(calls)
            calls.append([piece.name, ""])
        elif isinstance(piece, Arguments):
            calls[piece.index][1] += piece.text
    return text, [tuple(call) for call in calls]


def call(name="f", **values):
    body = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{body}</function>\n</tool_call>"


ONE = call(text="007", n="3")
OUTPUTS = [
    ("just text\n", ("just text\n", [])),
    (ONE, ("", [("f", '{"text": "007", "n": 3}')])),
    ("Let me look.\n\n" + ONE, ("Let me look.", [("f", '{"text": "007", "n": 3}')])),
    (ONE + "\n" + call("g") + "\n", ("", [("f", '{"text": "007", "n": 3}'), ("g", "{}")])),
    ("First. " + ONE + "\n\nThen.", ("First.\n\nThen.", [("f", '{"text": "007", "n": 3}')])),
    (
        call(text='say "hi"\n\ttwo\\three ☕'),
        ("", [("f", json.dumps({"text": 'say "hi"\n\ttwo\\three ☕'}, ensure_ascii=False))]),
    ),
    (call(text=""), ("", [("f", '{"text": ""}')])),
    (call(text="\nkept\n"), ("", [("f", '{"text": "\\nkept\\n"}')])),
    (call(list='[1, "a"]'), ("", [("f", '{"list": [1, "a"]}')])),
    ("<tool_call><function=f><parameter=n>3</parameter></function></tool_call>", ("", [("f", '{"n": 3}')])),
    # Tags that begin no call are text.
    ("the <tool_call> tag", ("the <tool_call> tag", [])),
    ("write <function=x> there", ("write <function=x> there", [])),
    ("a < b <tool", ("a < b <tool", [])),
    ("</tool_call> </function>", ("</tool_call> </function>", [])),
    # A value may quote the tags.
    (call(text="close with </parameter> please"), ("", [("f", '{"text": "close with </parameter> please"}')])),
    (call(text="<function=x>\n</function>"), ("", [("f", '{"text": "<function=x>\\n</function>"}')])),
    # What models leave out.
    ("<function=f>\n<parameter=n>\n3\n</parameter>\n</function>", ("", [("f", '{"n": 3}')])),
    ("<tool_call>\n<function=f>\n<parameter=n>\n3\n</parameter>\n</function>", ("", [("f", '{"n": 3}')])),
    ("<tool_call>\n<function=f>\n<parameter=text>\nx\n</function>\n</tool_call>", ("", [("f", '{"text": "x"}')])),
    ('<tool_call>\n<function=g>\n{"a": [1]}\n</function>\n</tool_call>', ("", [("g", '{"a": [1]}')])),
    ('<tool_call>\n<function="f">\n</function>\n</tool_call>', ("", [("f", "{}")])),
    ("<tool_call>\n<function=new>\n</function>\n</tool_call>", ("", [("new", "{}")])),  # For the caller to refuse.
    # A call that is cut off stays unfinished.
    ("<tool_call>\n<function=f>\n<parameter=text>\nhalf a", ("", [("f", '{"text": "half a')])),
    ("<tool_call>\n<function=f>\n<parameter=text>\nhalf\n</param", ("", [("f", '{"text": "half')])),
    ("<tool_call>\n<function=f>\n<parameter=n>\n3", ("", [("f", "")])),
    ("<tool_call>\n<function=f>\n<parameter=n>\n3\n</parameter>\n<par", ("", [("f", "")])),
]


@pytest.mark.parametrize(("output", "expected"), OUTPUTS)
def test_pieces_cut_anywhere_give_the_whole(output, expected):
    assert scan([output]) == expected
    assert scan(list(output)) == expected
    for cut in range(len(output) + 1):
        assert scan([output[:cut], output[cut:]]) == expected
    numbers = random.Random(1)
    for _ in range(50):
        cuts = sorted(numbers.choices(range(len(output) + 1), k=4))
        assert scan([output[a:b] for a, b in zip([0, *cuts], [*cuts, len(output)], strict=True)]) == expected


def test_long_text_is_passed_on_as_it_comes():
    scanner = CallScanner(TOOLS)
    scanner.feed("<tool_call>\n<function=f>\n<parameter=text>\n")
    for _ in range(10):
        assert scanner.feed("word ") == [Arguments(0, "word ")]


def test_only_the_first_call_where_only_one_is_wanted():
    assert scan([ONE + "\n" + call("g")], only_first=True) == ("", [("f", '{"text": "007", "n": 3}')])


def test_text_before_a_call_is_passed_on_at_once():
    scanner = CallScanner(TOOLS)
    assert scanner.feed("Hello, ") == [Text("Hello,")]
    assert scanner.feed("you") == [Text(" you")]
    assert scanner.feed("\n\n<tool") == []
