"""Messages as clients send them, made into what the chat template renders.

The template of Qwen3.6 takes one system message, and only as the first. Agents send several, under either name, and
later ones too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_INSTRUCTING = ("system", "developer")
"""Roles of instructions. `developer` is the newer name for the same."""

_GAP = "\n\n"
"""What stands between instructions that are joined."""


def normalise(body: dict[str, Any], *, strict: bool) -> None:
    """Make `body["messages"]` renderable. Changes `body`, but none of its messages.

    Leading instructions become one system message, and later ones user messages in their place. A content of null is an
    empty one. Past reasoning is called `reasoning`, as vLLM reads it on every route.

    Args:
        body: of a request that renders the template. What is malformed in it is left for the backend to refuse.
        strict: leave the instructions as they are, for the template to refuse.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return
    named = [_with_known_names(message) for message in messages]
    body["messages"] = named if strict else _with_one_system(named)


def normalise_input(body: dict[str, Any]) -> None:
    """The same for the input of /v1/responses, whose `instructions` are a system message before it. Changes `body`."""
    items = body.get("input")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return
    leading = 0
    while leading < len(items) and items[leading].get("role") in _INSTRUCTING:
        leading += 1
    rest = [_as_user(item) for item in items[leading:]]
    texts = [_text(item.get("content")) for item in items[:leading]]
    above = body.get("instructions")
    if leading and all(text is not None for text in texts) and (above is None or isinstance(above, str)):
        body["instructions"] = _joined([above or "", *texts])
        body["input"] = rest
    else:
        body["input"] = [*items[:leading], *rest]


def _text(content: Any) -> str | None:
    """The text of a content that has nothing else."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        return None
    texts = [part.get("text") if isinstance(part, dict) else None for part in content]
    kept = [text for text in texts if isinstance(text, str)]
    return "".join(kept) if len(kept) == len(texts) else None


def _as_user(message: dict[str, Any]) -> dict[str, Any]:
    """Instructions that come later, as text in their place; any other message as it is."""
    return {**message, "role": "user"} if message.get("role") in _INSTRUCTING else message


def _with_known_names(message: dict[str, Any]) -> dict[str, Any]:
    changed = dict(message)
    if "content" in changed and changed["content"] is None:
        changed["content"] = ""
    past = changed.pop("reasoning_content", None)
    if past is not None and changed.get("reasoning") is None:
        changed["reasoning"] = past
    return changed


def _with_one_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    leading = 0
    while leading < len(messages) and messages[leading].get("role") in _INSTRUCTING:
        leading += 1
    rest = [
        {**message, "role": "user"} if message.get("role") in _INSTRUCTING else message
        for message in messages[leading:]
    ]
    if leading == 0:
        return rest
    first = {**messages[0], "role": "system"}
    if leading > 1:
        first["content"] = _joined([message.get("content", "") for message in messages[:leading]])
    return [first, *rest]


def _joined(contents: Sequence[Any]) -> Any:
    """Contents as one: text where all are text, otherwise a list of their parts."""
    if all(isinstance(content, str) for content in contents):
        return _GAP.join(content for content in contents if content)
    parts: list[Any] = []
    for content in contents:
        if not content:
            continue
        if parts:
            parts.append({"type": "text", "text": _GAP})
        parts += content if isinstance(content, list) else [{"type": "text", "text": content}]
    return parts
