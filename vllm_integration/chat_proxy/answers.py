"""What is changed in the answers of chat completions on their way to the client.

Clients read a model's reasoning under one of two names: vLLM and the newer ones say `reasoning`, the older ones
`reasoning_content`. An answer has both.
"""

from __future__ import annotations

import json
import re
from typing import Any

_END = re.compile(rb"\r?\n\r?\n")
_PREFIX = b"data:"
_FIELD = b'"reasoning"'


class ChatAnswer:
    """One answer, whole or streamed. What has no reasoning in it goes through byte for byte.

    An event is passed on when its last byte is there, which is at once: the backend writes events whole.
    """

    def __init__(self) -> None:
        self._held = b""

    def whole(self, body: bytes) -> bytes:
        """A body that was not streamed."""
        return _named_twice(body, "message")

    def feed(self, piece: bytes) -> bytes:
        """The events that are complete with one more piece of a stream."""
        piece, self._held = self._held + piece, b""
        done, start = [], 0
        for end in _END.finditer(piece):
            done.append(_event(piece[start : end.start()]) + end.group())
            start = end.end()
        self._held = piece[start:]
        return b"".join(done)

    def finish(self) -> bytes:
        """What a stream left unfinished."""
        held, self._held = self._held, b""
        return held


def _event(event: bytes) -> bytes:
    if _FIELD not in event or not event.startswith(_PREFIX) or b"\n" in event:
        return event
    data = event.removeprefix(_PREFIX)
    named = _named_twice(data, "delta")
    return event if named is data else _PREFIX + b" " + named


def _named_twice(data: bytes, holder: str) -> bytes:
    """The JSON of an answer or a chunk with both names; `data` itself if it has no reasoning."""
    if _FIELD not in data:
        return data
    try:
        answer: Any = json.loads(data)
    except ValueError:
        return data
    choices = answer.get("choices") if isinstance(answer, dict) else None
    found = False
    for choice in choices if isinstance(choices, list) else ():
        message = choice.get(holder) if isinstance(choice, dict) else None
        if isinstance(message, dict) and "reasoning" in message:
            message["reasoning_content"] = message["reasoning"]
            found = True
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode() if found else data
