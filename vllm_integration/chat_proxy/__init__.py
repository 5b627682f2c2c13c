"""The front door: an HTTP proxy before vLLM's OpenAI-compatible server.

Streams what the engine streams, fills in what a request left open with the values published for Qwen3.6, refuses what
the engine should never see, and tells the load balancer the truth. Run as `python -m vllm_integration.chat_proxy`.
"""

from .app import create_app
from .settings import ProxySettings

__all__ = ["ProxySettings", "create_app"]
