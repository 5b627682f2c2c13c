"""Where thoughts end: by token ids, and by text cut anywhere."""

import itertools

import pytest

from vllm_integration.parsers.reasoning_splitter import ReasoningSplitter, is_open, opens_at_end

START, END = 7, 8
CALL = "<tool_call>\n<function=f>\n</function>\n</tool_call>"


@pytest.mark.parametrize(
    ("tokens", "open_"),
    [
        ([], False),
        ([1, 2], False),
        ([1, START, 2], True),
        ([START, END], False),
        ([START, 1, END, 2], False),
        ([START, 1, END, START, 3], True),  # An earlier turn's thoughts, then the generation prompt.
        ([END, START], True),
        ([START, START, END], False),
    ],
)
def test_the_last_tag_decides(tokens, open_):
    assert is_open(tokens, START, END) is open_
    assert opens_at_end("".join({START: "<think>", END: "</think>"}.get(t, "x") for t in tokens)) is open_


def split(pieces, tools=()):
    splitter = ReasoningSplitter()
    parts = [splitter.feed(piece) for piece in pieces] + [splitter.finish(tools)]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


OUTPUTS = [
    ("thoughts only", ("thoughts only", "")),
    ("hm\n</think>\n\nYes.", ("hm\n", "Yes.")),
    ("</think>\n\nYes.", ("", "Yes.")),
    ("hm</think>", ("hm", "")),
    ("hm</think>\n\n", ("hm", "")),
    ("hm</think>  indented\n", ("hm", "  indented\n")),
    ("a < b, </thin> and <think></think>ok", ("a < b, </thin> and <think>", "ok")),
    ("hm</think>x</think><think>y", ("hm", "x</think><think>y")),  # Tags of an answer are text.
    (f"call?\n{CALL} no</think>Yes.", (f"call?\n{CALL} no", "Yes.")),
    (f"call!\n{CALL}", ("call!\n", CALL)),
    ("about <tool_call> tags", ("about <tool_call> tags", "")),
    ("<tool_call>\n<function=g>\n</function>", ("<tool_call>\n<function=g>\n</function>", "")),  # No tool of that name.
    ("cut </thi", ("cut </thi", "")),
]


@pytest.mark.parametrize(("output", "expected"), OUTPUTS)
def test_pieces_cut_anywhere_give_the_whole(output, expected):
    assert split([output], {"f"}) == expected
    assert split(list(output), {"f"}) == expected
    for first, second in itertools.combinations(range(len(output) + 1), 2):
        assert split([output[:first], output[first:second], output[second:]], {"f"}) == expected


def test_without_tools_a_call_in_the_thoughts_is_a_thought():
    assert split([f"call!\n{CALL}"]) == (f"call!\n{CALL}", "")


def test_thoughts_are_passed_on_at_once():
    splitter = ReasoningSplitter()
    assert splitter.feed("It is ") == ("It is ", "")
    assert splitter.feed("so <") == ("so ", "")
    assert splitter.feed("b> and") == ("<b> and", "")
    assert not splitter.answered
    assert splitter.feed("</think>\n\nOh") == ("", "Oh")
    assert splitter.answered
