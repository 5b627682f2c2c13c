"""What the proxy is told at start: one typed object, validated once."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from qwen36_neuron.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """Where the backend is, what is filled in for clients and what is refused.

    Attributes:
        backend: base URL of vLLM's server, without a path.
        host: address to listen on.
        port: TCP port to listen on.
        api_key: bearer token that clients must present; None lets everybody in. Also sent by the warm-up request.
        enable_thinking: the mode of a chat request that does not choose one.
        sampling_defaults: whether sampling parameters that a chat request left out are filled in by mode.
        strict_messages: leave system and developer messages as they are, for the chat template to refuse.
        cut_max_tokens: cut the length of an answer to what fits; otherwise a request for more is refused.
        max_prompt_tokens: tokens of the longest prompt that is answered here; None for as many as fit.
        max_completion_tokens: tokens of the longest answer that is given here; None for as many as fit.
        long_context_backend: base URL of a server that answers what goes beyond these two; None to refuse it.
        cors_origins: origins whose pages may call, such as https://chat.example.com, or * for all; none by default.
        max_body_bytes: largest request body.
        max_json_depth: deepest nesting of a request body.
        max_concurrent: requests in flight at once, beyond which clients are told to come back.
        body_timeout: seconds a client may take to send its body.
        connect_timeout: seconds to reach the backend.
        response_timeout: seconds without a byte from the backend, before or between the pieces of its answer.
        health_interval: seconds between two looks at the backend.
        health_misses: looks in a row without an answer after which a backend that was ready is reported as silent.
        drain_timeout: seconds that running requests are given to end after SIGTERM.

    Raises:
        ConfigError: a value that cannot be used.
    """

    backend: str
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    enable_thinking: bool = True
    sampling_defaults: bool = True
    strict_messages: bool = False
    cut_max_tokens: bool = True
    max_prompt_tokens: int | None = None
    max_completion_tokens: int | None = None
    long_context_backend: str | None = None
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 8 << 20
    max_json_depth: int = 64
    max_concurrent: int = 256
    body_timeout: float = 30.0
    connect_timeout: float = 5.0
    response_timeout: float = 600.0
    health_interval: float = 1.0
    health_misses: int = 3
    drain_timeout: float = 30.0

    def __post_init__(self) -> None:
        _check_url("backend", self.backend)
        for name in ("max_prompt_tokens", "max_completion_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(name, value, "must be at least 1", "Raise it, or leave it out")
        if self.long_context_backend is not None:
            _check_url("long_context_backend", self.long_context_backend)
            if self.max_prompt_tokens is None and self.max_completion_tokens is None:
                problem = "is never used where everything is answered here"
                remedy = "Give max_prompt_tokens or max_completion_tokens too"
                raise ConfigError("long_context_backend", self.long_context_backend, problem, remedy)
        if not 0 <= self.port <= 65535:
            raise ConfigError("port", self.port, "is not a TCP port", "Use 1..65535, or 0 for any free one")
        for origin in self.cors_origins:
            parts = urlsplit(origin)
            if origin != "*" and (not parts.scheme or not parts.netloc or parts.path or parts.query):
                raise ConfigError(
                    "cors_origins", origin, "is not an origin", "Use a form like https://example.com, or *"
                )
        if self.api_key == "":
            raise ConfigError("api_key", "", "is empty, which would let everybody in", "Set a key or leave it out")
        for name in ("max_body_bytes", "max_json_depth", "max_concurrent", "health_misses"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "must be at least 1", "Raise it")
        for name in ("body_timeout", "connect_timeout", "response_timeout", "health_interval", "drain_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(name, getattr(self, name), "must be more than 0 seconds", "Raise it")


def _check_url(name: str, value: str) -> None:
    url = urlsplit(value)
    if url.scheme not in ("http", "https") or not url.hostname or url.path.strip("/") or url.query:
        raise ConfigError(name, value, "is not a base URL", "Use a form like http://127.0.0.1:8001")
