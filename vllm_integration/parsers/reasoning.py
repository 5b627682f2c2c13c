"""The reasoning parser: vLLM's interface to the one rule about think tags."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.platforms import current_platform
from vllm.reasoning import ReasoningParser
from vllm.tokenizers import TokenizerLike

from .calls import CallScanner
from .deltas import message
from .reasoning_splitter import THINK_END, THINK_START, ReasoningSplitter, is_open, opens_at_end
from .stops import STOP_IN_REASONING, cutter_of, move_stops_to_scheduler
from .tools import callable_tools

Request: TypeAlias = ChatCompletionRequest | ResponsesRequest


class QwenReasoningParser(ReasoningParser):
    """One instance parses one answer, or tells the scheduler of one request where its reasoning ends.

    Whether reasoning is open is told by the prompt's tokens where vLLM shows them, and by the template's arguments
    where it does not: a whole answer with `include_reasoning: false`, and one of the Responses API.

    Raises:
        RuntimeError: the tokenizer has no think tags.
    """

    engine_based_streaming = True

    def __init__(self, tokenizer: TokenizerLike, *args: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        self._template_kwargs: dict[str, Any] = kwargs.get("chat_template_kwargs") or {}
        start_id, end_id = self.vocab.get(THINK_START), self.vocab.get(THINK_END)
        if start_id is None or end_id is None:
            raise RuntimeError(f"the tokenizer has no {THINK_START} or no {THINK_END}; use another --reasoning-parser")
        self.start_id, self.end_id = start_id, end_id
        self._open: bool | None = None
        self._splitter = ReasoningSplitter()
        self._tools: dict[str, Any] = {}

    @property
    def reasoning_start_str(self) -> str:
        return THINK_START

    @property
    def reasoning_end_str(self) -> str:
        return THINK_END

    # ---- token ids ---------------------------------------------------------------------------------------------------

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Whether reasoning is not open at the end of a prompt."""
        self._open = is_open(input_ids, self.start_id, self.end_id)
        return not self._open

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Iterable[int]) -> bool:
        """Whether open reasoning ends with the last tokens, `delta_ids`."""
        return self.end_id in delta_ids

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """The tokens after `</think>`."""
        return input_ids[input_ids.index(self.end_id) + 1 :] if self.end_id in input_ids else []

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """How many generated tokens are reasoning, tags not counted."""
        if not self._is_open(None):
            return 0
        return token_ids.index(self.end_id) if self.end_id in token_ids else len(token_ids)

    # ---- text --------------------------------------------------------------------------------------------------------

    def adjust_request(self, request: Request) -> Request:
        """Set the stop strings apart where reasoning will come first."""
        if self._is_open(request) and not getattr(current_platform, STOP_IN_REASONING, False):
            move_stops_to_scheduler(request)
        return request

    def extract_reasoning(self, model_output: str, request: Request) -> tuple[str | None, str | None]:
        """Reasoning and answer of a whole output; None for either that is empty."""
        reasoning, answer = "", model_output
        if self._is_open(request):
            splitter = ReasoningSplitter()
            parts = (splitter.feed(model_output), splitter.finish(callable_tools(request)))
            reasoning, answer = ("".join(part[i] for part in parts) for i in (0, 1))
        cutter = cutter_of(request)
        if cutter is not None:
            answer = cutter.feed(answer) + cutter.finish()
        return reasoning or None, answer or None

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> DeltaMessage | None:
        """Reasoning and answer of one more piece, until the answer has begun."""
        return message(*self._splitter.feed(delta_text))

    def has_engine_confirmed_reasoning_end(self) -> bool:
        """Whether the answer has begun."""
        return self._splitter.answered

    def get_streaming_fallback_content(self, text: str, request: Request) -> None:
        """Asked before `finish_streaming` where no answer has begun; the one call that shows the request."""
        self._tools = callable_tools(request)

    def finish_streaming(self) -> DeltaMessage | None:
        """What was held back: the end of the reasoning, or calls that were made within them."""
        if self._splitter.answered:
            return None
        reasoning, answer = self._splitter.finish(self._tools)
        scanner = CallScanner(self._tools)
        return message(reasoning, pieces=[*scanner.feed(answer), *scanner.finish()])

    def _is_open(self, request: Request | None) -> bool:
        """Whether the output begins inside reasoning: seen in the prompt, or else as our chat template decides it."""
        if self._open is not None:
            return self._open
        if self._template_kwargs.get("continue_final_message"):
            messages = getattr(request, "messages", None) or [{}]
            return opens_at_end(_text(messages[-1].get("content")))
        if not self._template_kwargs.get("add_generation_prompt", True):
            return False
        return bool(self._template_kwargs.get("enable_thinking", True))


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or () if isinstance(part, dict))
