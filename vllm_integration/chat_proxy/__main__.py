"""`python -m vllm_integration.chat_proxy`: the proxy's command line."""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

from qwen36_neuron.errors import ConfigError

from ..flags import REQUIRED, flags
from .server import serve
from .settings import ProxySettings


def parse(arguments: list[str] | None = None) -> ProxySettings:
    """Settings from the command line; the API key from VLLM_API_KEY, which does not show in a process list."""
    parser = argparse.ArgumentParser(
        prog="python -m vllm_integration.chat_proxy",
        description="HTTP proxy before vLLM's OpenAI-compatible server. VLLM_API_KEY, where set, is asked of clients.",
    )
    for flag in flags(ProxySettings, leave_out=("api_key",)):
        how: dict[str, Any] = {"dest": flag.field, "help": flag.help.replace("%", "%%")}
        if flag.default is REQUIRED:
            how["required"] = True
        else:
            how["default"], how["help"] = flag.default, how["help"] + " (default: %(default)s)"
        if flag.kind == "bool":
            parser.add_argument(flag.name, action=argparse.BooleanOptionalAction, **how)
        else:
            parser.add_argument(flag.name, type=flag.parse, metavar=flag.metavar, **how)
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
