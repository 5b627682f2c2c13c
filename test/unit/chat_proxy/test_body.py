"""Body limits and JSON validity, at their boundaries."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_integration.chat_proxy.body import ClientGone, parse_object, read_body
from vllm_integration.chat_proxy.errors import ProxyError


def receiving(pieces: Iterable[bytes], *, ends: bool = True):
    """An ASGI receive channel that gives `pieces`, then a disconnect if the body does not end."""
    pieces = list(pieces)
    messages = [
        {"type": "http.request", "body": piece, "more_body": not ends or i < len(pieces) - 1}
        for i, piece in enumerate(pieces)
    ]
    messages.append({"type": "http.disconnect"})
    queue = iter(messages)

    async def receive():
        return next(queue)

    return receive


@pytest.mark.parametrize("pieces", [[b""], [b"x" * 10], [b"xxxx", b"xxxxxx"], [b"x"] * 10])
async def test_a_body_up_to_the_limit_is_read_whole(pieces):
    assert await read_body(receiving(pieces), None, limit=10, timeout=60) == b"".join(pieces)


@pytest.mark.parametrize(
    ("pieces", "declared"),
    [([b"x" * 11], None), ([b"x"] * 11, None), ([b"x" * 11], 11), ([b"x" * 5], 11), ([b"x" * 100] * 3, None)],
)
async def test_a_body_beyond_the_limit_is_413(pieces, declared):
    with pytest.raises(ProxyError) as caught:
        await read_body(receiving(pieces), declared, limit=10, timeout=60)
    assert caught.value.status == 413


async def test_a_body_without_end_is_cut_off():
    async def receive():
        return {"type": "http.request", "body": b"x" * 10, "more_body": True}

    with pytest.raises(ProxyError) as caught:
        await read_body(receive, None, limit=10, timeout=60)
    assert caught.value.status == 413


async def test_a_client_that_leaves_is_not_answered():
    with pytest.raises(ClientGone):
        await read_body(receiving([b"x"], ends=False), None, limit=10, timeout=60)


async def test_a_client_that_does_not_send_is_408():
    with pytest.raises(ProxyError) as caught:
        await read_body(asyncio.Event().wait, None, limit=10, timeout=0.01)
    assert caught.value.status == 408


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"}",
        b"]][[",
        b'{"a": }',
        b'{"a": 1} x',
        b"[]",
        b'"text"',
        b"null",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\\ud800"}',
        b'{"\\udc00": 1}',
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": "line\nbreak"}',
        b"[" * 200_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_is_not_a_json_object_in_utf8_is_400(raw):
    with pytest.raises(ProxyError) as caught:
        parse_object(raw, max_depth=64)
    assert caught.value.status == 400
    assert json.loads(caught.value.body)["error"]["code"] == 400


@pytest.mark.parametrize("bracket", [b"[", b'{"a":'])
def test_depth_is_allowed_up_to_the_limit(bracket):
    def nested(depth: int) -> bytes:
        inner = bracket * (depth - 1)
        close = (b"]" if bracket == b"[" else b"}") * (depth - 1)
        return b'{"x":' + inner + b"0" + close + b"}"

    parse_object(nested(64), max_depth=64)
    with pytest.raises(ProxyError, match="64 levels"):
        parse_object(nested(65), max_depth=64)


def test_brackets_in_strings_are_not_depth():
    text = "[" * 1000 + '\\"{' + "]" * 3
    raw = json.dumps({"content": text}).encode()
    assert parse_object(raw, max_depth=1) == {"content": text}


def test_a_paired_surrogate_is_a_character():
    assert parse_object(b'{"a": "\\ud83d\\ude00"}', max_depth=2) == {"a": "\U0001f600"}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), json_values, max_size=4), st.booleans())
def test_every_object_is_read_as_the_json_module_reads_it(value, ascii_only):
    raw = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    assert parse_object(raw, max_depth=64) == value


@given(st.binary(max_size=60))
def test_no_bytes_do_anything_but_parse_or_400(raw):
    with contextlib.suppress(ProxyError):  # Any other exception fails the test.
        assert parse_object(raw, max_depth=8) == json.loads(raw)
