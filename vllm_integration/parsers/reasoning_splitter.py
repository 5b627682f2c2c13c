"""Where reasoning ends and the answer begins, in token ids and in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Container, Sequence

import regex

THINK_START = "<think>"
THINK_END = "</think>"

CALL = regex.compile(r"<tool_call>\s*<function=(?P<name>[^<>\n]{1,256})>")
"""The beginning of a call, as the chat template teaches it."""


def is_open(token_ids: Sequence[int], start_id: int, end_id: int) -> bool:
    """Whether reasoning is open at the end of a prompt: its last think tag is an opening one."""
    for token in reversed(token_ids):
        if token == start_id:
            return True
        if token == end_id:
            return False
    return False


def opens_at_end(text: str) -> bool:
    """The same of a text."""
    return text.rfind(THINK_START) > text.rfind(THINK_END)


class ReasoningSplitter:
    """Divides what is generated where reasoning is open into reasoning and answer, whatever the pieces are.

    The line ends that the model writes between `</think>` and its answer belong to neither.

    A model sometimes calls a tool before it has ended its reasoning, and then stops. What looks like a call is
    therefore held back until `</think>` makes it reasoning after all, or the end of the output makes it a call.
    """

    def __init__(self) -> None:
        self.answered = False
        """Whether the answer's first character is known."""
        self._closed = False
        self._held = ""

    def feed(self, text: str) -> tuple[str, str]:
        """Reasoning and answer of one more piece."""
        reasoning, text = "", self._held + text
        self._held = ""
        if not self._closed:
            reasoning, tag, rest = text.partition(THINK_END)
            if not tag:
                kept = self._kept_from(text)
                self._held = text[kept:]
                return text[:kept], ""
            self._closed, text = True, rest
        if not self.answered:
            text = text.lstrip("\n")
            self.answered = bool(text)
        return reasoning, text

    def finish(self, tools: Container[str]) -> tuple[str, str]:
        """Reasoning and answer of what was held back.

        Args:
            tools: names of the functions that may be called.
        """
        held, self._held = self._held, ""
        for call in CALL.finditer(held):
            if call["name"] in tools:
                return held[: call.start()], held[call.start() :]
        return held, ""

    @staticmethod
    def _kept_from(text: str) -> int:
        """Where in `text`, which has no `</think>`, one or a call may begin."""
        call = CALL.search(text, partial=True)
        kept = call.start() if call else len(text)
        for length in range(min(len(THINK_END) - 1, len(text)), 0, -1):
            if text.endswith(THINK_END[:length]):
                return min(kept, len(text) - length)
        return kept
