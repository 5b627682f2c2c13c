"""Refusals and failures in the shape that OpenAI clients read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus


class ProxyError(Exception):
    """An answer of the proxy's own making.

    Args:
        status: HTTP status.
        message: what is wrong and, where the client can act, what to do.
        retry_after: seconds after which the same request may succeed; None when it never will.
        reason: label of the `rejected` metric.
    """

    def __init__(self, status: int, message: str, *, reason: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.reason, self.retry_after = status, message, reason, retry_after

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
        """`{"error": {"message", "type", "param", "code"}}`, the type and code as vLLM gives them."""
        kind = HTTPStatus(self.status).phrase.title().replace(" ", "") + "Error"
        error = {"message": self.message, "type": kind, "param": None, "code": self.status}
        return json.dumps({"error": error}).encode()

    @property
    def event(self) -> bytes:
        """The same, as one server-sent event, for a stream that has begun."""
        return b"data: " + self.body + b"\n\n"
