"""Refusals and failures in the shapes that OpenAI's and Anthropic's clients read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

_ANTHROPIC = "/v1/messages"
"""The route whose clients are Anthropic's, and those below it."""


class ProxyError(Exception):
    """An answer of the proxy's own making.

    Args:
        status: HTTP status.
        message: what is wrong and, where the client can act, what to do.
        retry_after: seconds after which the same request may succeed; None when it never will.
        reason: label of the `rejected` metric.
        param: the field of the request that is at fault, where it is one.
    """

    def __init__(
        self, status: int, message: str, *, reason: str, retry_after: int | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.reason = status, message, reason
        self.retry_after, self.param = retry_after, param

    @property
    def headers(self) -> Mapping[str, str]:
        extra: dict[str, str] = {}
        if self.retry_after is not None:
            extra["retry-after"] = str(self.retry_after)
        if self.status == HTTPStatus.UNAUTHORIZED:
            extra["www-authenticate"] = "Bearer"
        return extra

    @property
    def body(self) -> bytes:
        """The error object that OpenAI's clients read."""
        return self.body_for("")

    def body_for(self, route: str) -> bytes:
        """The error object of `route`'s protocol, its type and code as vLLM gives them.

        `{"error": {"message", "type", "param", "code"}}`, or `{"type": "error", "error": {"type", "message"}}` for
        Anthropic's clients.
        """
        kind = HTTPStatus(self.status).phrase.title().replace(" ", "") + "Error"
        if is_anthropic(route):
            return json.dumps({"type": "error", "error": {"type": kind, "message": self.message}}).encode()
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.status}
        return json.dumps({"error": error}).encode()

    def event_for(self, route: str) -> bytes:
        """The same, as one server-sent event, for a stream that has begun."""
        name = b"event: error\n" if is_anthropic(route) else b""
        return name + b"data: " + self.body_for(route) + b"\n\n"


def is_anthropic(route: str) -> bool:
    """Whether the clients of `route` speak Anthropic's protocol."""
    return route == _ANTHROPIC or route.startswith(f"{_ANTHROPIC}/")
