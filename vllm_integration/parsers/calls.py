"""Tool calls in the form that the chat template teaches, found in text that arrives in pieces.

    <tool_call>
    <function=get_weather>
    <parameter=city>
    Oslo
    </parameter>
    </function>
    </tool_call>

Whole answers are read by the same machine in one piece, so the two cannot differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import regex

from .arguments import Parameters

_NAME = r"[^<>\n]{1,256}"
_START = regex.compile(rf"<tool_call>\s*<function=(?P<name>{_NAME})>|<function=(?P<bare>{_NAME})>")
_NEXT = regex.compile(rf"<parameter=(?P<key>{_NAME})>|(?P<end></function>|</tool_call>)")
_VALUE_END = regex.compile(
    # A closing tag counts where another tag of the call follows: text that quotes one is part of the value.
    r"(?P<end>\n?</parameter>)\s*(?:<parameter=|</function>|</tool_call>)|(?P<missing>\n?)</function>\s*</tool_call>"
)
_WRAPPER_END = regex.compile(r"\s*</tool_call>")


@dataclass(frozen=True, slots=True)
class Text:
    """Part of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Begin:
    """A call's name is known; `index` counts the calls from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """The next characters of a call's arguments, a JSON object put together from all of them."""

    index: int
    text: str


Piece = Text | Begin | Arguments


class CallScanner:
    """Divides an answer into text and calls.

    Blanks around calls are dropped; `<tool_call>` counts where a function follows, and `<function=...>` without it
    where the name is a tool's. Plain string arguments are passed on as they come, others when they are complete. A call
    that the output's end cuts off keeps its arguments unfinished, so that nobody runs half a call.

    Args:
        tools: the schemas of the functions' parameters, by name.
        only_first: drop all calls but the first.
    """

    def __init__(self, tools: Mapping[str, object], only_first: bool = False) -> None:
        self._tools, self._only_first = tools, only_first
        self._buffer = ""
        self._seen = 0
        """How much of the buffer holds nothing that is looked for."""
        self._final = False
        self._pieces: list[Piece] = []
        self._index = -1
        self._state: Callable[[], bool] = self._text
        self._parameters = Parameters(None)
        self._key = ""
        self._given = 0
        self._at_start = False
        """Whether the value's first character is still to come: a line end there is the template's."""

    def feed(self, text: str) -> list[Piece]:
        """What is certain after one more piece of text."""
        self._buffer += text
        while self._state():
            pass
        pieces, self._pieces = self._pieces, []
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back, now that no more text comes."""
        self._final = True
        return self.feed("")

    # ---- states: each takes what it can from the buffer and tells whether another turn may take more -----------------

    def _text(self) -> bool:
        start = _START.search(self._buffer, partial=True)
        if start is None or start.partial:
            certain = len(self._buffer) if self._final or start is None else start.start()
            kept = self._buffer[:certain].rstrip() if not self._final or self._index >= 0 else self._buffer
            self._say(kept)
            self._buffer = "" if self._final else self._buffer[len(kept) :]
            return False
        bare = start["bare"]
        if bare is not None and _clean(bare) not in self._tools:
            self._say(self._take(start.end()))
            return True
        self._say(self._take(start.start()).rstrip())
        self._take(start.end() - start.start())
        name = _clean(start["name"] or bare)
        self._index, self._given = self._index + 1, 0
        self._parameters = Parameters(self._tools.get(name))
        self._emit(Begin(self._index, name))
        self._state = self._body
        return True

    def _body(self) -> bool:
        found = self._find(_NEXT)
        if found is None:
            return False
        between = self._take(found.start()).strip()
        self._take(found.end() - found.start())
        if found["end"]:
            self._close(between)
            self._state = self._wrapper if found["end"] == "</function>" else self._text
            return True
        self._key = _clean(found["key"])
        self._at_start = True
        self._state = self._plain_value if self._parameters.is_plain_text(self._key) else self._typed_value
        return True

    def _plain_value(self) -> bool:
        if not self._skip_line_end():
            return False
        end = _VALUE_END.search(self._buffer, partial=True)
        text = self._take(end.start() if end else len(self._buffer))
        if self._at_start:
            self._argue(self._opening() + '"')
            self._at_start = False
        self._argue(json.dumps(text, ensure_ascii=False)[1:-1])
        if end is None or end.partial:
            return False
        self._argue('"')
        return self._value_ends(end)

    def _typed_value(self) -> bool:
        if not self._skip_line_end():
            return False
        self._at_start = False
        end = self._find(_VALUE_END)
        if end is None:
            return False
        value = self._parameters.value(self._key, self._take(end.start()))
        self._argue(self._opening() + json.dumps(value, ensure_ascii=False))
        return self._value_ends(end)

    def _wrapper(self) -> bool:
        end = _WRAPPER_END.match(self._buffer, partial=True)
        if end is not None and end.partial and not self._final:
            return False
        if end is not None and not end.partial:
            self._take(end.end())
        self._state = self._text
        return True

    # ---- helpers -----------------------------------------------------------------------------------------------------

    def _find(self, pattern: regex.Pattern[str]) -> regex.Match[str] | None:
        """The first match in the buffer; what cannot begin one is not looked at again."""
        found = pattern.search(self._buffer, self._seen, partial=True)
        if found is not None and not found.partial:
            return found
        self._seen = found.start() if found else len(self._buffer)
        return None

    def _skip_line_end(self) -> bool:
        """Drop the line end before a value; False while its first character is not there."""
        if self._at_start:
            if not self._buffer:
                return False
            # With an empty value, it is the one before the closing tag.
            self._buffer = self._buffer.removeprefix("\n")
        return True

    def _value_ends(self, end: regex.Match[str]) -> bool:
        self._take(len(end["end"] or end["missing"] or ""))
        self._given += 1
        self._state = self._body
        return True

    def _close(self, between: str) -> None:
        """End a call; what stood in it instead of parameters is its arguments, if it is a JSON object."""
        if self._given:
            self._argue("}")
            return
        arguments: object = None
        if between.startswith("{"):
            try:
                arguments = json.loads(between)
            except (ValueError, RecursionError):
                arguments = None
        self._argue(json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else "{}")

    def _opening(self) -> str:
        return ("{" if not self._given else ", ") + json.dumps(self._key, ensure_ascii=False) + ": "

    def _take(self, count: int) -> str:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        self._seen = 0
        return taken

    def _say(self, text: str) -> None:
        if text:
            self._pieces.append(Text(text))

    def _argue(self, text: str) -> None:
        if text:
            self._emit(Arguments(self._index, text))

    def _emit(self, piece: Begin | Arguments) -> None:
        if piece.index == 0 or not self._only_first:
            self._pieces.append(piece)


def _clean(name: str) -> str:
    """A name without the blanks or quotes that models sometimes put around it."""
    return name.strip().strip("\"'")
