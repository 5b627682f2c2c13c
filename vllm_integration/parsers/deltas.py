"""Parsed pieces as vLLM's messages."""

from __future__ import annotations

from collections.abc import Iterable

from vllm.entrypoints.chat_utils import make_tool_call_id
from vllm.entrypoints.generate.base.protocol import DeltaFunctionCall, DeltaMessage, DeltaToolCall

from .calls import Arguments, Begin, Piece


def message(reasoning: str = "", content: str = "", pieces: Iterable[Piece] = ()) -> DeltaMessage | None:
    """One delta, with the fields that have something to say; None if none has.

    A call has its id and name in its first entry alone, and one entry in a delta.
    """
    calls: dict[int, DeltaToolCall] = {}
    for piece in pieces:
        if isinstance(piece, Begin):
            function = DeltaFunctionCall(name=piece.name, arguments="")
            calls[piece.index] = DeltaToolCall(
                index=piece.index, id=make_tool_call_id(), type="function", function=function
            )
        elif isinstance(piece, Arguments):
            call = calls.get(piece.index)
            if call is None:
                function = DeltaFunctionCall(arguments=piece.text)
                calls[piece.index] = DeltaToolCall(index=piece.index, function=function)
            else:
                call.function.arguments += piece.text
        else:
            content += piece.text
    fields = {"reasoning": reasoning, "content": content, "tool_calls": list(calls.values())}
    said = {name: value for name, value in fields.items() if value}
    return DeltaMessage(**said) if said else None
