"""The `qwen36` command. What only one command needs is imported for that command alone: `serve` takes no torch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import typer
from typer.core import TyperCommand

from .errors import ConfigError

commands = typer.Typer(help="Qwen3.6 on AWS Trainium2, and on a CPU.", no_args_is_help=True, add_completion=False)


@cache
def _mount_models() -> None:
    """Add the commands that work on a model."""
    from . import cli_model
    from .cli_compare import compare_models

    commands.command("make-checkpoint")(cli_model.make_checkpoint)
    commands.command("plan")(cli_model.plan)
    commands.command("generate")(cli_model.generate_text)
    commands.command("estimate")(cli_model.estimate)
    commands.command("compare")(compare_models)


@cache
def _mount_kernels() -> None:
    """Add `qwen36 kernels` where the kernels' own commands are installed."""
    if importlib.util.find_spec("nki_kernels.profiling") is not None:
        profiling = importlib.import_module("nki_kernels.profiling")
        commands.add_typer(profiling.app, name="kernels", help="Run and profile the NKI kernels.")


class _Verbatim(TyperCommand):
    """Leaves every word after its name to the one it calls, `--help` and `--` included."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return []


@commands.callback()
def _several() -> None:
    """Qwen3.6 on AWS Trainium2, and on a CPU."""


@commands.command(cls=_Verbatim, add_help_option=False)
def serve(context: typer.Context) -> None:
    """Serve a checkpoint: vLLM with this project's plugin, and the chat proxy in front of it."""
    if importlib.util.find_spec("vllm_integration") is None:
        raise ConfigError("serve", "vllm_integration", "is not installed", "Install the whole qwen36-neuron wheel")
    sys.exit(importlib.import_module("vllm_integration.launcher").main(context.args))


def app(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `qwen36` script. A configuration error is one line on stderr and exit code 2."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] != ["serve"]:
        _mount_models()
        _mount_kernels()
    try:
        commands(args=words)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
