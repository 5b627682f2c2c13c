"""Answers longer than what fits: the refusal is taken back, the length is cut, and the request is sent again.

Only the backend can count a prompt's tokens, so a request is sent as it is. One that asks for more tokens than the
context has left is refused there, before anything is generated; then its prompt is counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from .backend import Backend
from .errors import ProxyError, is_anthropic

FIELDS: Mapping[str, Sequence[str]] = {
    "/v1/chat/completions": ("max_completion_tokens", "max_tokens"),
    "/v1/completions": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
    "/v1/messages": ("max_tokens",),
}
"""By route, the fields that bound the length of an answer; the first that is set counts."""

_COMPLETION_TOKENS = 16
"""The length of a completion that does not say, in OpenAI's definition and in vLLM."""

_RENDERED = (
    "model",
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "chat_template",
    "chat_template_kwargs",
    "media_io_kwargs",
    "mm_processor_kwargs",
)
"""Fields of a chat request that /tokenize reads too."""

_TRANSLATED = ("model", "messages", "system", "tools", "tool_choice", "chat_template_kwargs")
"""Fields of a request for messages that counting its tokens reads too."""


def is_too_long(status: int, answer: bytes) -> bool:
    """Whether the backend refused the length of a request, its prompt and its answer together."""
    return status == 400 and (b"maximum context length" in answer or b"cannot be greater than max_model_len" in answer)


async def refit(
    route: str, body: dict[str, Any], backend: Backend, headers: Sequence[tuple[bytes, bytes]], *, cut: bool
) -> dict[str, Any] | None:
    """The request with its answer's length cut to what fits.

    Args:
        route: of the request.
        body: of the request, which the backend refused as too long.
        backend: to count with.
        headers: of the request.
        cut: whether to cut; otherwise the request is refused.

    Returns:
        The body to send instead, or None where the backend's own refusal says all.

    Raises:
        ProxyError: 400 if the prompt leaves no room, or if nothing is to be cut. It gives the true numbers.
    """
    if route == "/v1/completions" and "max_tokens" not in body:
        body = {**body, "max_tokens": _COMPLETION_TOKENS}
    field = next((name for name in FIELDS.get(route, ()) if isinstance(body.get(name), int)), None)
    if field is None or body.get("truncate_prompt_tokens") is not None or body.get("truncation") == "auto":
        return None
    if route == "/v1/responses":
        # Nothing counts its prompt, but one prompt alone is what fills the context where no length is asked for.
        return {**body, field: None} if cut else None
    counted = await count_prompt(route, body, backend, headers)
    if counted is None:
        return None
    prompt, context = counted
    room = context - prompt
    if room < 1:
        raise _refusal(f"The prompt has {prompt} tokens, and with the answer at most {context} fit. Shorten it.", None)
    if not cut:
        raise _refusal(
            f"{field} is {body[field]}, and the prompt's {prompt} tokens leave {room} of the {context} that fit. "
            f"Ask for at most {room}.",
            field,
        )
    return {**body, field: min(body[field], room)}


async def count_prompt(
    route: str, body: Mapping[str, Any], backend: Backend, headers: Sequence[tuple[bytes, bytes]]
) -> tuple[int, int] | None:
    """Tokens of the longest prompt of a request, and of the context; None where the backend cannot tell."""
    if is_anthropic(route):
        counted = await _ask(backend, "/v1/messages/count_tokens", _some(body, _TRANSLATED), headers)
        models = await _ask(backend, "/v1/models", None, headers)
        try:
            return int(counted["input_tokens"]), int(models["data"][0]["max_model_len"])
        except (KeyError, LookupError, TypeError, ValueError):
            return None
    if route == "/v1/chat/completions":
        asked = [_some(body, _RENDERED)]
        for_tokenize(asked[0], body)
    else:
        # Token ids are their own count; only the context's length has to be asked for.
        common = _some(body, ("model", "add_special_tokens"))
        asked = [{**common, "prompt": text} for text in _texts(body.get("prompt"))] or [{**common, "prompt": ""}]
    longest = _longest_ids(body.get("prompt"))
    context = 0
    for one in asked:
        answer = await _ask(backend, "/tokenize", one, headers)
        try:
            context = int(answer["max_model_len"])
            longest = max(longest, int(answer["count"]))
        except (KeyError, TypeError, ValueError):
            return None
    return longest, context


def for_tokenize(asked: dict[str, Any], body: Mapping[str, Any]) -> None:
    """Hand the fields that a chat request gives to its template, and /tokenize does not, over as template variables.

    Args:
        asked: body of a request to /tokenize, changed.
        body: of the chat request.
    """
    given = asked.get("chat_template_kwargs")
    if given is not None and not isinstance(given, dict):
        return
    extra = {name: body[name] for name in ("reasoning_effort", "documents") if body.get(name) is not None}
    if "reasoning_effort" in extra and "enable_thinking" not in (given or {}):
        extra["enable_thinking"] = extra["reasoning_effort"] != "none"
    if extra:
        asked["chat_template_kwargs"] = {**(given or {}), **extra}


def _texts(prompt: Any) -> list[str]:
    """The prompts of a completion that are text."""
    return [one for one in (prompt if isinstance(prompt, list) else [prompt]) if isinstance(one, str)]


def _longest_ids(prompt: Any) -> int:
    """The length of the longest prompt of a completion that is token ids."""
    if not isinstance(prompt, list):
        return 0
    if prompt and isinstance(prompt[0], int):
        return len(prompt)
    return max((len(one) for one in prompt if isinstance(one, list)), default=0)


def _some(body: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: body[name] for name in names if name in body}


async def _ask(
    backend: Backend, path: str, body: Mapping[str, Any] | None, headers: Sequence[tuple[bytes, bytes]]
) -> Any:
    """The backend's JSON answer, or None."""
    content = None if body is None else json.dumps(body).encode()
    request = backend.client.build_request(
        "GET" if content is None else "POST", path, headers=list(headers), content=content
    )
    try:
        answer = await backend.client.send(request)
        return answer.json() if answer.status_code == 200 else None
    except (httpx.TransportError, ValueError):
        return None


def _refusal(message: str, param: str | None) -> ProxyError:
    return ProxyError(400, message, reason="length", param=param)
