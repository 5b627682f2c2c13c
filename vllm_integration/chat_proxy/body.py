"""Reading a request body: how big, how deep, and whether it is JSON at all."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any, NoReturn

from starlette.types import Receive

from .errors import ProxyError

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
_DISCARD = 8
"""How many times the limit is read and thrown away before a client that sends too much is cut off.

A server that answers and closes while the client still writes resets the connection, and the client may never see the
answer.
"""


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""


async def read_body(receive: Receive, declared: int | None, limit: int, timeout: float) -> bytes:
    """The whole body of a request.

    Args:
        receive: ASGI receive channel.
        declared: the Content-Length, where the client sent one.
        limit: bytes allowed.
        timeout: seconds allowed.

    Raises:
        ProxyError: 413 for too large a body, 408 for too slow a client.
        ClientGone: the client left.
    """
    too_large = declared is not None and declared > limit
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                piece = message.get("body", b"")
                size += len(piece)
                if too_large or size > limit:
                    too_large = True
                    pieces.clear()
                else:
                    pieces.append(piece)
                if not message.get("more_body", False) or size > _DISCARD * limit:
                    break
    except TimeoutError:
        if not too_large:
            raise ProxyError(
                408, f"The request body did not arrive within {timeout:g} s.", reason="slow_body"
            ) from None
    if too_large:
        raise ProxyError(413, f"The request body is larger than the {limit} bytes allowed.", reason="body_size")
    return b"".join(pieces)


def parse_object(raw: bytes, max_depth: int) -> dict[str, Any]:
    """The JSON object in `raw`.

    Raises:
        ProxyError: 400 if it is not UTF-8, not JSON, too deep, not an object, or not sayable in UTF-8.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad(f"The request body is not valid UTF-8: {error.reason} at byte {error.start}.", "utf8") from None
    if _depth(raw) > max_depth:
        raise _bad(f"The request body nests deeper than the {max_depth} levels allowed.", "json_depth")
    try:
        body = json.loads(text, parse_constant=_not_a_number, parse_float=_finite)
    except ValueError as error:
        raise _bad(f"The request body is not valid JSON: {error}.", "json") from None
    if not isinstance(body, dict):
        raise _bad("The request body must be a JSON object.", "json")
    if b"\\u" in raw:
        try:
            json.dumps(body, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise _bad("A string of the request body holds an unpaired UTF-16 surrogate.", "utf8") from None
    return body


def _depth(raw: bytes) -> int:
    """How deep the brackets nest, found without recursion so that no depth can overflow the parser."""
    deepest = depth = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", raw)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _not_a_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text} is out of range")
    return value


def _bad(message: str, reason: str) -> ProxyError:
    return ProxyError(400, message, reason=reason)
