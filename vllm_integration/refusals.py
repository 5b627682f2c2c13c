"""A refused start in few lines: the message, without the stacks of two processes around it."""

from __future__ import annotations

import functools
import multiprocessing
import sys
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, TypeVar

from vllm.logger import init_logger

from qwen36_neuron.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")

logger = init_logger("vllm.vllm_integration.refusals")

ENGINE_FAILED = "Engine core initialization failed"
"""What vLLM raises in the server's process once the engine's has ended, and has said why."""


def tell_briefly() -> None:
    """Let a refusal that ends this process be its message alone, as a command line's errors are."""
    previous = sys.excepthook
    if getattr(previous, "tells_briefly", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, ConfigError) or str(error).startswith(ENGINE_FAILED):
            print(f"error: {error}", file=sys.stderr)
        else:
            previous(kind, error, trace)

    hook.tells_briefly = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def ends_the_engine(function: Callable[P, R]) -> Callable[P, R]:
    """Where the engine has a process of its own, let a ConfigError be logged and end it, with status 1.

    In the user's own process it is raised as it is.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except ConfigError as error:
            if multiprocessing.parent_process() is None:
                raise
            logger.error("%s", error)
            raise SystemExit(1) from None

    return run
