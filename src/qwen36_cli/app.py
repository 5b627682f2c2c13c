"""Which commands there are, and how one is run: names of earlier releases, its module, errors in one line."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from qwen36_neuron.errors import ConfigError
from qwen36_neuron.openmp import openmp_environment

from .renamed import renamed

COMMANDS = {
    "generate": "qwen36_cli.generate:generate",
    "compile": "qwen36_cli.compile:compile_model",
    "validate": "qwen36_cli.validate:validate",
    "plan": "qwen36_cli.plan:plan",
    "estimate": "qwen36_cli.estimate:estimate",
    "compare": "qwen36_cli.compare:compare",
    "gate": "qwen36_cli.gate:gate",
    "calibrate-kv": "qwen36_cli.calibrate_kv:calibrate_kv",
    "make-checkpoint": "qwen36_cli.make_checkpoint:make_checkpoint",
}
"""Where each command is, as module:function; `serve` and the groups are beside them."""

BENCHMARKS = {
    "serving": "qwen36_cli.bench.serving:serving",
    "apc": "qwen36_cli.bench.apc:apc",
    "kernels": "qwen36_cli.bench.kernels:kernels",
    "sampling": "qwen36_cli.bench.sampling:sampling",
    "speculation": "qwen36_cli.bench.speculation:speculation",
    "scenarios": "qwen36_cli.bench.scenarios:scenarios",
}

EXTRAS = {
    **dict.fromkeys(("vllm", "httpx", "starlette", "uvicorn", "prometheus_client", "jsonschema"), "serve"),
    **dict.fromkeys(("matplotlib", "psutil", "scipy"), "dev"),
}
"""Optional packages, by the extra of this project that brings them."""


class _Verbatim(TyperCommand):
    """Leaves every word after its name to the one it calls, `--help` and `--` included."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return []


def _serve(context: typer.Context) -> None:
    """Serve a checkpoint: vLLM with this project's plugin, and the chat proxy in front of it."""
    from vllm_integration.launcher import main

    sys.exit(main(context.args))


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _mount(group: typer.Typer, table: Mapping[str, str], word: str | None) -> None:
    """Add the command that is asked for; all of them for help, and where none has that name."""
    for name in [word] if word is not None and word in table else list(table):
        try:
            command = _load(table[name])
        except ModuleNotFoundError as error:
            if word in table or _package(error) not in EXTRAS:
                raise
            command = _absent(_package(error))
        group.command(name)(command)


def _absent(package: str) -> Callable[[], None]:
    """Stands in help for a command that cannot be imported."""

    def command() -> None:
        """Not installed."""

    command.__doc__ = f"Not there without {package}: pip install 'qwen36-neuron[{EXTRAS[package]}]'."
    return command


def _package(error: ModuleNotFoundError) -> str:
    return (error.name or "").partition(".")[0]


def _commands(words: Sequence[str]) -> typer.Typer:
    """The command, with as much mounted as these words need."""
    commands = typer.Typer(no_args_is_help=True, add_completion=False)
    commands.callback()(_several)
    word = words[0] if words else None
    commands.command("serve", cls=_Verbatim, add_help_option=False)(_serve)
    if word not in ("serve", "bench", "kernels"):
        _mount(commands, COMMANDS, word)
    if word not in ("serve", "kernels", *COMMANDS):
        benchmarks = typer.Typer(no_args_is_help=True)
        benchmarks.callback()(_benchmarks)
        _mount(benchmarks, BENCHMARKS, words[1] if len(words) > 1 else None)
        commands.add_typer(benchmarks, name="bench")
    if word not in ("serve", "bench", *COMMANDS):
        help_text = "Run, price and calibrate the NKI kernels in their interpreter."
        commands.add_typer(_load("nki_kernels.profiling:app"), name="kernels", help=help_text)
    return commands


def _several() -> None:
    """Qwen3.6 on AWS Trainium2, and on a CPU."""


def _benchmarks() -> None:
    """Measure or model: serving and sampling on this machine, prefix reuse, the kernels' prices."""


def app(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `qwen36` script, which ends the process.

    What cannot be done as it is asked for is one line on stderr and exit code 2.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    words, notes = renamed(words)
    for note in notes:
        print(f"qwen36: {note}", file=sys.stderr)
    if words[:1] in (["generate"], ["compare"], ["calibrate-kv"]) and "torch" not in sys.modules:
        os.environ.update(openmp_environment(os.environ))  # read once, when torch is imported
    try:
        _commands(words)(args=words, prog_name="qwen36")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        package = _package(error)
        if package not in EXTRAS:
            raise
        what = " ".join(words[: 2 if words[0] == "bench" else 1])
        print(
            f"error: qwen36 {what} needs {package}, which is not installed. "
            f"Run pip install 'qwen36-neuron[{EXTRAS[package]}]'.",
            file=sys.stderr,
        )
    sys.exit(2)
