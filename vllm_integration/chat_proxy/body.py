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
_LONG_NUMBER = re.compile(rb"[0-9]{19}")
_INTEGERS = range(-(2**63), 2**64)
"""Those that 64 bits can hold, signed or not: what the engine's messages and every client's own integers allow."""
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
        ProxyError: 400 if it is not an object, or anything that parse_json refuses.
    """
    body = parse_json(raw, max_depth, "The request body")
    if not isinstance(body, dict):
        raise _bad("The request body must be a JSON object.", "json")
    return body


def parse_json(raw: bytes, max_depth: int, what: str) -> Any:
    """The JSON value in `raw`, read as strictly as whatever reads it later needs it to be.

    Args:
        raw: the text in UTF-8.
        max_depth: deepest nesting allowed.
        what: what it is, as the subject of an error's message.

    Raises:
        ProxyError: 400 if it is not UTF-8, not JSON, too deep, not sayable in UTF-8, or has a number out of range.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad(f"{what} is not valid UTF-8: {error.reason} at byte {error.start}.", "utf8") from None
    if _depth(raw) > max_depth:
        raise _bad(f"{what} nests deeper than the {max_depth} levels allowed.", "json_depth")
    try:
        value = json.loads(text, parse_constant=_not_a_number, parse_float=_finite)
    except ValueError as error:
        raise _bad(f"{what} is not valid JSON: {error}.", "json") from None
    if b"\\u" in raw:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise _bad(f"{what} has a string with an unpaired UTF-16 surrogate.", "utf8") from None
    if _LONG_NUMBER.search(raw):
        _check_integers(value, what, "")
    return value


def _check_integers(value: Any, what: str, path: str) -> None:
    """Raises ProxyError 400 for an integer that 64 bits cannot hold; most bodies have none that is long enough."""
    if isinstance(value, int):
        if value not in _INTEGERS:
            place = f" at {path}" if path else ""
            raise ProxyError(400, f"{what} has an integer{place} that 64 bits cannot hold.", reason="range", param=path)
    elif isinstance(value, dict):
        for name, member in value.items():
            _check_integers(member, what, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, member in enumerate(value):
            _check_integers(member, what, f"{path}[{index}]")


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
