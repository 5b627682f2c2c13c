"""Middleware of vLLM's server (`--middleware`, set by the platform): a body that cannot be served is answered 400.

vLLM's request models, chat templates and message encoder each assume a little more of a body than was checked before
them, and what they raise then is answered 500, or as an event of a stream whose status was 200. Here a body is read as
strictly as they need it, and what still fails while it is read is answered as the client's fault that it is.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .body_fields import Facts, check_fields, facts_of
from .chat_proxy.body import parse_json
from .chat_proxy.errors import ProxyError, is_anthropic

logger = logging.getLogger("vllm.vllm_integration.body_guard")

MAX_DEPTH = 64
"""Deepest nesting of a body, and of a schema given as text inside one. The proxy's own limit may be lower."""

MAX_PROPERTY_STATES = 20_000
"""Bound on properties times `minProperties` or `maxProperties`, added over a schema: the grammar has a rule for each
pair of a property and a count."""

_READING = (
    "fastapi.dependencies.utils",
    "vllm.renderers",
    "vllm.entrypoints.chat_utils",
    "vllm.entrypoints.openai.responses.utils",
)
"""Modules that only read a request: what is raised below a call of theirs is a function of the body alone."""


class BodyGuard:
    """Checks JSON bodies before `app` has them, and turns its failures to read one into 400.

    Args:
        app: vLLM's server.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._facts: Facts | None = None

    def _facts_of(self, scope: Scope) -> Facts | None:
        """What decides which fields have an effect; None where all are taken, or nothing is known yet."""
        state = getattr(scope.get("app"), "state", None)
        config = getattr(state, "vllm_config", None)
        if config is None or (config.additional_config or {}).get("allow_unknown_fields", False):
            return None
        if self._facts is None:
            self._facts = facts_of(state)
        return self._facts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        raw = await _read(receive)
        if raw is None:
            return
        route = scope["path"]
        screen = _Screen(route, raw, send)
        try:
            if raw:
                body = parse_json(raw, MAX_DEPTH, "The request body")
                check_body(body, raw, _backend(scope))
                facts = self._facts_of(scope)
                if facts is not None and isinstance(body, dict):
                    check_fields(route, body, facts)
            await self.app(scope, _replay(raw, receive), screen.send)
        except ProxyError as error:
            await screen.refuse(error)
        except Exception as error:
            if screen.sent or not _while_reading(error):
                raise
            await screen.refuse(_fault(error))


def check_body(body: Any, raw: bytes, backend: str) -> None:
    """Raises ProxyError 400, naming the field, for what vLLM would fail at instead of refusing it.

    Args:
        body: the parsed body.
        raw: its text.
        backend: the back end of structured outputs, as configured.
    """
    if not isinstance(body, dict):
        return
    for name in ("kv_transfer_params", "ec_transfer_params"):
        if body.get(name) is not None:
            raise _bad(f"{name} is not supported: no connector moves caches between servers here.", name)
    wanted = body.get("structured_outputs")
    if wanted is not None and not isinstance(wanted, dict):
        raise _bad(f"structured_outputs must be an object, not {json.dumps(wanted)[:40]}.", "structured_outputs")
    for name in ("json", "structural_tag"):
        text = (wanted or {}).get(name)
        if isinstance(text, str):
            parsed = parse_json(text.encode(), MAX_DEPTH, f"structured_outputs.{name}")
            _check_property_states(parsed)
    _check_tools(body)
    if b"Properties" in raw:
        _check_property_states(body)
    if backend == "xgrammar":
        for place, schema in _schemas(body):
            _check_features(place, schema)


def _check_tools(body: Mapping[str, Any]) -> None:
    """A named choice makes vLLM look for the name in tools that it has not checked."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if "input" in body:
        _check_response_tools(tools, choice)
    if not isinstance(choice, dict) or not isinstance(choice.get("function"), dict) or tools is None:
        return
    if not isinstance(tools, list):
        raise _bad("tools must be a list of objects.", "tools")
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict):
            raise _bad(f"tools[{index}] must be an object with a field `function`.", f"tools[{index}].function")
        if not isinstance(function.get("name"), str):
            raise _bad(f"tools[{index}].function must have a name.", f"tools[{index}].function.name")


def _check_response_tools(tools: Any, choice: Any) -> None:
    """/v1/responses takes the names of OpenAI's own tools, which run nowhere here, and would forget about them."""
    names = []
    for index, tool in enumerate(tools if isinstance(tools, list) else ()):
        if isinstance(tool, dict) and isinstance(tool.get("type"), str):
            if tool["type"] != "function":
                raise _bad(
                    f"tools[{index}]: a tool of type {tool['type']!r} cannot be run here.", f"tools[{index}].type"
                )
            names.append(tool.get("name"))
    if isinstance(choice, dict) and isinstance(choice.get("type"), str):
        if choice["type"] != "function":
            raise _bad(f"tool_choice of type {choice['type']!r} is not supported.", "tool_choice.type")
        if choice.get("name") not in names:
            raise _bad(f"tool_choice names {choice.get('name')!r}, which is none of the tools.", "tool_choice.name")


def _check_property_states(body: Any) -> None:
    states = 0
    for node in _objects(body):
        properties = node.get("properties")
        bounds = [node[name] for name in ("minProperties", "maxProperties") if isinstance(node.get(name), int)]
        if isinstance(properties, dict) and bounds:
            states += len(properties) * min(max(bounds), len(properties))
    if states > MAX_PROPERTY_STATES:
        raise ProxyError(
            400,
            f"A schema counts its properties in {states} ways, and {MAX_PROPERTY_STATES} are allowed. "
            "Leave out minProperties and maxProperties, or name fewer properties.",
            reason="schema",
        )


def _check_features(place: str, schema: Any) -> None:
    from .grammars import unsupported_feature

    if isinstance(schema, str):
        schema = json.loads(schema)
    feature = unsupported_feature(schema)
    if feature is not None:
        raise _bad(
            f"{place}: the grammar cannot enforce {feature}. Remove it from the schema, or serve with "
            "--structured-outputs-config.backend guidance.",
            place,
        )


def _schemas(body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The JSON schemas that an answer would have to follow, each with the name of its field."""
    for path in (
        ("structured_outputs", "json"),
        ("response_format", "json_schema", "schema"),
        ("text", "format", "schema"),
        ("output_config", "format", "schema"),
    ):
        node: Any = body
        for name in path:
            node = node.get(name) if isinstance(node, dict) else None
        if node is not None:
            yield ".".join(path), node


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


class _Screen:
    """Lets an answer through, unless it is a failure to read the body in the form of an event or of a status 500.

    The start of an answer is held back until the first bytes of its body show which it is.
    """

    def __init__(self, route: str, raw: bytes, send: Send) -> None:
        self.route, self.raw, self._send = route, raw, send
        self.sent = False
        self._held: Message | None = None
        self._pieces = b""
        self._refused = False

    async def send(self, message: Message) -> None:
        if self._refused:
            return
        if message["type"] == "http.response.start":
            kind = dict(message.get("headers", ())).get(b"content-type", b"")
            failed = message["status"] >= (400 if is_anthropic(self.route) else 500)
            if kind.startswith(b"text/event-stream") or failed:
                self._held = message
            else:
                await self._forward(message)
        elif self._held is None:
            await self._forward(message)
        else:
            await self._judge(self._held, message)

    async def refuse(self, error: ProxyError) -> None:
        """Answer with `error`; nothing else is sent after it."""
        body = error.body_for(self.route)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self._forward({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._forward({"type": "http.response.body", "body": body, "more_body": False})
        self._refused = True

    async def _judge(self, start: Message, message: Message) -> None:
        self._pieces += message.get("body", b"")
        if start["status"] >= 400:
            if message.get("more_body"):
                return
            error = _unreadable(self.route, self.raw) if start["status"] >= 500 else self._in_its_form(start["status"])
        else:
            error = first_error(self._pieces)
        if error is not None:
            await self.refuse(error)
            return
        self._held = None
        await self._forward(start)
        await self._forward({**message, "body": self._pieces})

    def _in_its_form(self, status: int) -> ProxyError | None:
        """A refusal of vLLM's validation, which has OpenAI's form on every route, to be sent in the route's own."""
        try:
            error = json.loads(self._pieces)
            return None if "type" in error else ProxyError(status, str(error["error"]["message"]), reason="body")
        except (ValueError, TypeError, KeyError):
            return None

    async def _forward(self, message: Message) -> None:
        self.sent = True
        await self._send(message)


def first_error(events: bytes) -> ProxyError | None:
    """The error that a stream begins with, or None: before any other event it can still become the status."""
    name, _, rest = events.partition(b"\n") if events.startswith(b"event: error") else (b"", b"", events)
    if not rest.startswith(b"data: {") or not (name or rest.startswith((b'data: {"error"', b'data: {"type": "error"'))):
        return None
    try:
        error = json.loads(rest.split(b"\n", 1)[0].removeprefix(b"data: "))["error"]
        message, kind = str(error["message"]), str(error.get("type", ""))
        status = int(error.get("code") or (400 if "BadRequest" in kind or "invalid" in kind else 500))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return ProxyError(status if 400 <= status < 600 else 500, message, reason="stream", param=error.get("param"))


def _unreadable(route: str, raw: bytes) -> ProxyError | None:
    """What is wrong with a body of Anthropic's protocol that was answered 500: its translation is tried again.

    vLLM itself makes the 500 there, so that no exception tells what failed.
    """
    if not is_anthropic(route):
        return None
    from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages

    model = AnthropicCountTokensRequest if route.endswith("/count_tokens") else AnthropicMessagesRequest
    try:
        AnthropicServingMessages.to_chat_completion_request(model.model_validate_json(raw))
    except Exception as error:
        return _fault(error)
    return None


def _while_reading(error: Exception) -> bool:
    """Whether `error` was raised below a function that only reads the request."""
    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if any(module == name or module.startswith(f"{name}.") for name in _READING):
            return True
        trace = trace.tb_next
    return False


def _fault(error: Exception) -> ProxyError:
    logger.warning("a request could not be read", exc_info=error)
    detail = str(error) or "an assumption about it does not hold"
    return ProxyError(400, f"The request could not be read: {type(error).__name__}: {detail[:500]}.", reason="body")


def _bad(message: str, param: str) -> ProxyError:
    return ProxyError(400, message, reason="body", param=param)


def _backend(scope: Scope) -> str:
    state = getattr(scope.get("app"), "state", None)
    config = getattr(getattr(state, "vllm_config", None), "structured_outputs_config", None)
    return str(getattr(config, "backend", ""))


async def _read(receive: Receive) -> bytes | None:
    """The whole body, or None if the client left."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


def _replay(raw: bytes, receive: Receive) -> Receive:
    """A channel that gives the body that was read, and then whatever comes."""
    waiting = [raw]

    async def again() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return again
