"""Pricing the kernels from a command line: ``app`` is a typer application that the project's command mounts.

A kernel joins by registering an example of its arguments::

    @register("rms_norm")
    def _example() -> Example:
        return Example(kernel=rms_norm, args=(x, w))
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from .interpreter import cost_table, profile


@dataclass(frozen=True)
class Example:
    """A kernel (``k`` or ``k[2]``) with arguments of a size that matters.

    Attributes:
        kernel: What to run.
        args, kwargs: Its arguments.
        note: What the sizes mean, in a line.
    """

    kernel: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    note: str = ""


REGISTRY: dict[str, Callable[[], Example]] = {}
app = typer.Typer(no_args_is_help=True, help="Run and price the NKI kernels on the interpreter.")


def register(name: str) -> Callable[[Callable[[], Example]], Callable[[], Example]]:
    """Make a kernel known by ``name``; the decorated function builds its example when asked."""

    def add(make: Callable[[], Example]) -> Callable[[], Example]:
        if name in REGISTRY:
            raise ValueError(f"kernel '{name}' is already registered")
        REGISTRY[name] = make
        return make

    return add


def load_all() -> dict[str, Callable[[], Example]]:
    """Import every module of the package, so that each registers its examples; returns the registry."""
    import nki_kernels

    for module in pkgutil.iter_modules(nki_kernels.__path__):
        if module.name not in ("interpreter", "profiling"):
            importlib.import_module(f"nki_kernels.{module.name}")
    return REGISTRY


@app.command("list")
def list_kernels() -> None:
    """Names of the kernels that can be profiled."""
    for name in sorted(load_all()):
        typer.echo(name)


@app.command("constants")
def constants() -> None:
    """The constants of the cost model, with their sources."""
    for row in cost_table():
        mark = "estimate" if row["estimate"] else ""
        typer.echo(f"{row['name']:<24}{row['value']:>10g} {row['unit']:<22}{mark:<10}{row['source']}")


@app.command("profile")
def profile_kernel(
    name: str, out: Annotated[Path | None, typer.Option(help="Folder for JSON, timeline and plot.")] = None
) -> None:
    """Price one kernel; with --out also write NAME.json, NAME.trace.json (Perfetto) and NAME.png."""
    known = REGISTRY if name in REGISTRY else load_all()
    if name not in known:
        typer.echo(f"no kernel '{name}'; there are: {', '.join(sorted(known)) or 'none'}", err=True)
        raise typer.Exit(2)
    example = known[name]()
    _, report = profile(example.kernel, *example.args, **example.kwargs)
    report.name = name
    typer.echo(report.table() + (f"\n  {example.note}" if example.note else ""))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        report.to_json(out / f"{name}.json")
        report.to_chrome_trace(out / f"{name}.trace.json")
        report.plot(out / f"{name}.png")
        typer.echo(f"  wrote {out / name}.json, .trace.json and .png")
