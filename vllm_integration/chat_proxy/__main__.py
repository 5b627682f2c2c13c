"""`python -m vllm_integration.chat_proxy`: the proxy's command line."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os

from qwen36_neuron.errors import ConfigError

from .server import serve
from .settings import ProxySettings

_HELP = {
    "backend": "base URL of vLLM's server, such as http://127.0.0.1:8001",
    "host": "address to listen on",
    "port": "TCP port to listen on",
    "enable_thinking": "mode of chat requests that do not choose one",
    "sampling_defaults": "fill in the sampling parameters published for the mode where a chat request left them out",
    "max_body_bytes": "largest request body",
    "max_json_depth": "deepest nesting of a request body",
    "max_concurrent": "requests in flight at once; more are answered 429",
    "body_timeout": "seconds a client may take to send its body",
    "connect_timeout": "seconds to reach the backend",
    "response_timeout": "seconds without a byte from the backend before a request is given up",
    "health_interval": "seconds between two looks at the backend",
    "health_misses": "looks in a row without an answer after which /health reports a backend as silent",
    "drain_timeout": "seconds that running requests are given to end after SIGTERM",
}


def parse(arguments: list[str] | None = None) -> ProxySettings:
    """Settings from the command line; the API key from VLLM_API_KEY, which does not show in a process list."""
    parser = argparse.ArgumentParser(
        prog="python -m vllm_integration.chat_proxy",
        description="HTTP proxy before vLLM's OpenAI-compatible server. VLLM_API_KEY, where set, is asked of clients.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for field in dataclasses.fields(ProxySettings):
        if field.name not in _HELP:
            continue
        flag, text = "--" + field.name.replace("_", "-"), _HELP[field.name]
        if field.default is dataclasses.MISSING:
            parser.add_argument(flag, required=True, help=text)
        elif isinstance(field.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default, help=text)
        else:
            parser.add_argument(flag, type=type(field.default), default=field.default, help=text)
    try:
        return ProxySettings(api_key=os.environ.get("VLLM_API_KEY"), **vars(parser.parse_args(arguments)))
    except ConfigError as error:
        parser.error(str(error))


def main() -> None:
    settings = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    serve(settings)


if __name__ == "__main__":
    main()
