"""The tool parser: vLLM's interface to the calls in an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from vllm.entrypoints.generate.base.protocol import (
    DeltaMessage,
    ExtractedToolCallInformation,
    FunctionCall,
    ToolCall,
)
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionToolsParam
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.tokenizers import TokenizerLike
from vllm.tool_parsers.abstract_tool_parser import Tool, ToolParser
from vllm.tool_parsers.utils import iter_response_function_tool_info

from .calls import Arguments, Begin, CallScanner, Piece, Text
from .deltas import message
from .stops import clear_server_stops, cutter_of

Request: TypeAlias = ChatCompletionRequest | ResponsesRequest


def callable_tools(request: Any) -> dict[str, Any]:
    """The functions that an answer may call, and the schemas of their parameters; none if the request forbids calls."""
    if getattr(request, "tool_choice", None) == "none":
        return {}
    found: dict[str, Any] = {}
    for tool in getattr(request, "tools", None) or ():
        if isinstance(tool, ChatCompletionToolsParam):
            found[tool.function.name] = tool.function.parameters
        else:
            found.update(iter_response_function_tool_info(tool))
    return found


class _Answer:
    """One answer on its way: cut at its stop string, divided into text and calls if it may call."""

    def __init__(self, request: Request) -> None:
        self._cutter = cutter_of(request)
        tools = callable_tools(request)
        self._scanner = CallScanner(tools, getattr(request, "parallel_tool_calls", None) is False) if tools else None

    def feed(self, text: str) -> list[Piece]:
        return self._scan(self._cutter.feed(text) if self._cutter else text)

    def finish(self) -> list[Piece]:
        pieces = self._scan(self._cutter.finish()) if self._cutter else []
        return pieces + self._scanner.finish() if self._scanner else pieces

    def _scan(self, text: str) -> list[Piece]:
        return self._scanner.feed(text) if self._scanner else [Text(text)]


class QwenToolParser(ToolParser):
    """One instance parses one answer, from where its reasoning has ended.

    Where the request gives no tools, or forbids calls, all is text.
    """

    structural_tag_model = "qwen_3_coder"
    engine_based_streaming = True

    def __init__(self, tokenizer: TokenizerLike, tools: list[Tool] | None = None) -> None:
        super().__init__(tokenizer, tools)
        self._answer: _Answer | None = None

    def adjust_request(self, request: Request) -> Request:
        """Besides what vLLM adjusts: take over the stop strings that the reasoning parser set apart."""
        request = super().adjust_request(request)
        clear_server_stops(request)
        return request

    def get_structural_tag(self, request: Request, *, reasoning: bool = False) -> Any:
        """The grammar of forced calls; of one alone where only one is wanted."""
        tag = super().get_structural_tag(request, reasoning=reasoning)
        if tag is not None and request.parallel_tool_calls is False and hasattr(tag.format, "stop_after_first"):
            tag.format.stop_after_first = True
        return tag

    def extract_tool_calls(self, model_output: str, request: Request) -> ExtractedToolCallInformation:
        """Text and calls of a whole answer; the reasoning parser has cut it at its stop string."""
        tools = callable_tools(request)
        if not tools:
            return ExtractedToolCallInformation(tools_called=False, tool_calls=[], content=model_output)
        scanner = CallScanner(tools, getattr(request, "parallel_tool_calls", None) is False)
        content = ""
        calls: list[FunctionCall] = []
        for piece in [*scanner.feed(model_output), *scanner.finish()]:
            if isinstance(piece, Begin):
                calls.append(FunctionCall(name=piece.name, arguments=""))
            elif isinstance(piece, Arguments):
                calls[piece.index].arguments += piece.text
            else:
                content += piece.text
        return ExtractedToolCallInformation(
            tools_called=bool(calls), tool_calls=[ToolCall(function=call) for call in calls], content=content or None
        )

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: Request,
    ) -> DeltaMessage | None:
        """Text and calls of one more piece."""
        if self._answer is None:
            self._answer = _Answer(request)
        return message(pieces=self._answer.feed(delta_text))

    def finish_streaming(self) -> DeltaMessage | None:
        """What was held back."""
        return message(pieces=self._answer.finish()) if self._answer else None
