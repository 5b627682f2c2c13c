"""What `--kv-events` tells vLLM: where it publishes what the prefix cache holds, and under which topic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..chat_proxy.settings import ProxySettings
from . import extra
from .errors import Refusal
from .options import Engine

FLAG = "--kv-events-config"
"""vLLM's own flag for all of this."""

_EVERYWHERE = ("0.0.0.0", "::", "")
_LAST = 65535


def config(
    engine: Engine,
    front: ProxySettings,
    served: str,
    rest: Sequence[str],
    name: Callable[[str], str],
    environment: Mapping[str, str],
) -> dict[str, Any] | None:
    """vLLM's configuration of KV events; None where none are published.

    Events go out on the port on every address of the machine, since vLLM's publisher listens on no single one; what was
    missed is given on the next port, where the server listens. The topic is the one that routers look for, with the
    address that they know a replica by: a pod's, where the environment has it, else the server's.

    Args:
        served: the model's first name.
        rest: flags for `vllm serve`, as they were given.
        name: the flag that a field was given by.
        environment: POD_IP, as Kubernetes' downward API gives it.
    Raises:
        Refusal: a port that cannot be, or a setting that contradicts another or says nothing.
    """
    port, topic = engine.kv_events, engine.kv_events_topic
    if port is None:
        if topic is not None:
            raise Refusal(f"{name('kv_events_topic')} says nothing without {name('kv_events')}")
        return None
    named = f"{name('kv_events')} {port}"
    if not 1 <= port < _LAST:
        raise Refusal(f"{named} must be a port from 1 to {_LAST - 1}: the next one gives what was missed")
    if not engine.enable_prefix_caching:
        raise Refusal(f"{named} publishes what is cached, and {name('enable_prefix_caching')} has nothing cached")
    taken = {front.port: "port"} | ({engine.backend_port or front.port + 1: "backend_port"} if engine.proxy else {})
    for own in (port, port + 1):
        if own in taken:
            of = "its own port" if own == port else f"port {own} for what was missed"
            raise Refusal(f"{named} needs {of}, which is {name(taken[own])}")
    for word, flag in extra.flags_of(rest):
        if FLAG.startswith(flag) and len(flag) > len("--kv-"):  # vLLM takes a flag by its beginning too
            raise Refusal(f"{FLAG} after -- ({word}) would contradict {named}")
    address = environment.get("POD_IP") or f"{_bracketed(front.host)}:{front.port}"
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{port}",
        "replay_endpoint": f"tcp://{'*' if front.host in _EVERYWHERE else _bracketed(front.host)}:{port + 1}",
        "topic": f"kv@{address}@{served}" if topic is None else topic,
    }


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
