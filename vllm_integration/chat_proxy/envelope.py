"""The lengths that a server was accepted for: a request beyond them is refused, or answered by another backend.

A deployment is accepted by a suite of prompts of certain lengths (`qwen36 gate`). What lies beyond was not looked at,
so it is not served silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .backend import Backend
from .errors import ProxyError
from .limits import FIELDS, count_prompt

_IMPLIED = {"/v1/completions": 16}
"""By route, the length of an answer that says none, where that is not all that fits."""
_REQUIRED = ("/v1/messages",)
"""Routes whose requests must say a length: one that does not is the backend's to refuse."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """Tokens that a prompt and an answer may have; None for as many as fit.

    Attributes:
        prompt: of the longest prompt of a request.
        completion: of one answer.
    """

    prompt: int | None
    completion: int | None

    def fill(self, route: str, body: dict[str, Any]) -> bool:
        """Bound an answer of which the client says no length. Changes `body`; whether it did."""
        if self.completion is None or route in _REQUIRED or _asked(route, body) is not None:
            return False
        if _IMPLIED.get(route, self.completion + 1) <= self.completion:
            return False
        body[FIELDS[route][0]] = self.completion
        return True

    async def beyond(
        self, route: str, body: Mapping[str, Any], backend: Backend, headers: Sequence[tuple[bytes, bytes]]
    ) -> ProxyError | None:
        """The refusal of a request that goes beyond; None for one that does not.

        A prompt that the backend cannot render is not beyond: the backend refuses it, and says why.

        Args:
            route: one of FIELDS.
            body: of the request.
            backend: to count with.
            headers: of the request.
        """
        asked = _asked(route, body)
        if self.completion is not None and asked is not None and asked[1] > self.completion:
            field, tokens = asked
            message = f"{field} is {tokens}, and answers of {self.completion} tokens at most were accepted here"
            return _refusal(f"{message}. Ask for at most {self.completion}.", field)
        if self.prompt is None:
            return None
        if route == "/v1/responses":
            if not isinstance(body.get("input"), str | list):
                return None
            chat = as_chat(body)
            if chat is None:
                message = "The prompt's length is not known before it runs"
                return _refusal(f"{message}, and prompts of {self.prompt} tokens at most were accepted here.", "input")
            route, body = "/v1/chat/completions", chat
        counted = await count_prompt(route, body, backend, headers)
        if counted is None:
            return None
        cut, tokens = body.get("truncate_prompt_tokens"), counted[0]
        if isinstance(cut, int) and cut > 0:  # what the backend leaves of it
            tokens = min(tokens, cut)
        if tokens <= self.prompt:
            return None
        message = f"The prompt has {tokens} tokens, and prompts of {self.prompt} at most were accepted here"
        return _refusal(f"{message}. Shorten it.", None)


def as_chat(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The chat request that renders as a request to /v1/responses does, as far as its length goes.

    Returns:
        None where a part of its prompt is not in it, as with `previous_response_id`, or is not text.
    """
    if body.get("previous_response_id") is not None or body.get("prompt") is not None:
        return None
    given = body.get("input")
    messages: list[dict[str, Any]] = []
    if isinstance(body.get("instructions"), str):
        messages.append({"role": "system", "content": body["instructions"]})
    for item in [{"role": "user", "content": given}] if isinstance(given, str) else given or ():
        text = _text(item.get("content")) if isinstance(item, dict) and "role" in item else None
        if text is None:
            return None
        messages.append({"role": item["role"], "content": text})
    chat: dict[str, Any] = {name: body[name] for name in ("model", "chat_template_kwargs") if name in body}
    if isinstance(body.get("tools"), list):
        chat["tools"] = [_tool(tool) for tool in body["tools"]]
    return {**chat, "messages": messages}


def _text(content: Any) -> str | None:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [part.get("text") if isinstance(part, dict) else None for part in content]
    return "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else None


def _tool(tool: Any) -> Any:
    """A function as chat requests describe it: its fields lie a level deeper there."""
    if not isinstance(tool, dict) or "function" in tool:
        return tool
    return {"type": tool.get("type"), "function": {key: value for key, value in tool.items() if key != "type"}}


def _asked(route: str, body: Mapping[str, Any]) -> tuple[str, int] | None:
    """The field that bounds the answer, and its value; what is no integer is the backend's to refuse."""
    for field in FIELDS[route]:
        value = body.get(field)
        if isinstance(value, int) and not isinstance(value, bool):
            return field, value
    return None


def _refusal(message: str, param: str | None) -> ProxyError:
    return ProxyError(400, message, reason="envelope", param=param)
