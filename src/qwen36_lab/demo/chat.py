"""Conversations as the chat template writes them, in pieces: what is given and what is to be learned."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the assistant makes."""

    name: str
    arguments: Mapping[str, Value]

    def text(self) -> str:
        """As the chat template writes it."""
        lines = [f"<tool_call>\n<function={self.name}>\n"]
        for name, value in self.arguments.items():
            shown = value if isinstance(value, str) else json.dumps(value)
            lines.append(f"<parameter={name}>\n{shown}\n</parameter>\n")
        return "".join(lines) + "</function>\n</tool_call>"


@dataclass(frozen=True, slots=True)
class Turn:
    """Something said to the assistant, and what it says back.

    Attributes:
        said: the user's message, or a tool's response.
        answer: the reply.
        reasoning: the content of the thinking block, which the caller may take away ("") for a reply without thinking.
        calls: tool calls after the reply.
        from_tool: whether `said` is a tool's response.
    """

    said: str
    answer: str
    reasoning: str = "I can answer this directly."
    calls: tuple[ToolCall, ...] = ()
    from_tool: bool = False

    def messages(self) -> list[dict[str, Any]]:
        """As messages of the OpenAI chat API."""
        reply: dict[str, Any] = {"role": "assistant", "content": self.answer, "reasoning_content": self.reasoning}
        if self.calls:
            reply["tool_calls"] = [
                {"type": "function", "function": {"name": c.name, "arguments": dict(c.arguments)}} for c in self.calls
            ]
        return [{"role": "tool" if self.from_tool else "user", "content": self.said}, reply]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns after an optional system message and tools (JSON schemas of the OpenAI API)."""

    turns: Iterable[Turn]
    system: str = ""
    tools: Sequence[Mapping[str, Any]] = ()

    def messages(self) -> list[dict[str, Any]]:
        head = [{"role": "system", "content": self.system}] if self.system else []
        return head + [message for turn in self.turns for message in turn.messages()]


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is tokenised on its own; pieces begin where the tokenizer splits anyway."""

    text: str
    learned: bool


def opening(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> str:
    """The system turn: tools and instructions; "" without either."""
    if not conversation.system and not conversation.tools:
        return ""
    messages = [{"role": "system", "content": conversation.system}] if conversation.system else []
    messages.append({"role": "user", "content": "?"})
    text: str = tokenizer.apply_chat_template(messages, tools=list(conversation.tools) or None, tokenize=False)
    return text[: text.rindex("<|im_start|>user")]


def turn_pieces(turn: Turn) -> Iterator[Piece]:
    """A turn, its thinking block kept (`preserve_thinking`): each reply looks as the newest one does."""
    said = f"\n<tool_response>\n{turn.said}\n</tool_response>" if turn.from_tool else "\n" + turn.said
    prompt = f"<|im_start|>user{said}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    reply = turn.answer
    for index, call in enumerate(turn.calls):
        reply += ("\n\n" if reply and not index else "\n" if index else "") + call.text()
    if turn.reasoning:
        yield Piece(prompt, False)
        reply = f"{turn.reasoning}\n</think>\n\n{reply}"
    else:
        yield Piece(prompt + "\n</think>\n\n", False)
    yield Piece(reply + "<|im_end|>", True)
    yield Piece("\n", False)
