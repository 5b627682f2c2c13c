"""The front door: an HTTP proxy before vLLM's OpenAI-compatible server.

Streams what the engine streams, fills in what a request left open with the values published for Qwen3.6, refuses what
the engine should never see, and tells the load balancer the truth. Run as `python -m vllm_integration.chat_proxy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .settings import ProxySettings

if TYPE_CHECKING:
    from .app import create_app

__all__ = ["ProxySettings", "create_app"]


def __getattr__(name: str) -> Any:
    """The application when it is asked for: the settings alone take no HTTP library."""
    if name != "create_app":
        raise AttributeError(name)
    from .app import create_app

    return create_app
