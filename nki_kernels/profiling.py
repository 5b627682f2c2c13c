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

from .interpreter import PriceList
from .interpreter.launch import run
from .interpreter.report import make_report
from .interpreter.sensitivity import effects, likely


@dataclass(frozen=True)
class Example:
    """A kernel (``k`` or ``k[2]``) with arguments of a size that matters.

    Attributes:
        kernel: What to run.
        args, kwargs: Its arguments.
        ranks: Ranks that run together, all with these arguments.
        note: What the sizes mean, in a line.
    """

    kernel: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    ranks: int = 1


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


Prices = Annotated[Path | None, typer.Option(help="A price list (JSON) in place of the published prices.")]


def load_prices(path: Path | None) -> PriceList:
    """The list in a file, or the published one; ends the command with the reason if it cannot be used."""
    try:
        return PriceList() if path is None else PriceList.load(path)
    except (OSError, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error


@app.command("constants")
def constants(
    prices: Prices = None, save: Annotated[Path | None, typer.Option(help="Also write the list to this file.")] = None
) -> None:
    """The constants of the cost model: low, centre, high, unit, kind, source, and what is uncertain."""
    shown = load_prices(prices)
    typer.echo(f"Prices: {shown.name}. Times that follow from them are modelled.")
    for name, p in shown.prices.items():
        values = f"{p.centre:>10g}" if p.low == p.high else f"{p.low:>10g} {p.centre:>9g} {p.high:>9g}"
        typer.echo(f"{name:<30}{values:<32}{p.unit:<18}{p.kind:<12}{p.source}")
        if p.uncertain:
            typer.echo(f"{'':<30}uncertain: {p.uncertain}")
    if save is not None:
        shown.save(save)


@app.command("profile")
def profile_kernel(
    name: str,
    out: Annotated[Path | None, typer.Option(help="Folder for JSON, timeline and plot.")] = None,
    prices: Prices = None,
    uncertain: Annotated[bool, typer.Option(help="Also tell which uncertain prices the time depends on.")] = False,
) -> None:
    """Price one kernel; with --out also write NAME.json, NAME.trace.json (Perfetto) and NAME.png."""
    known = REGISTRY if name in REGISTRY else load_all()
    if name not in known:
        typer.echo(f"no kernel '{name}'; there are: {', '.join(sorted(known)) or 'none'}", err=True)
        raise typer.Exit(2)
    listed = load_prices(prices)
    example = known[name]()
    _, launch = run(example.kernel, example.args, example.kwargs, ranks=example.ranks)
    report = make_report(name, launch.cores, listed)
    typer.echo(report.table() + (f"\n  {example.note}" if example.note else ""))
    if uncertain:
        found = effects(launch.cores, listed)
        low, high = likely(report.time_us, found)
        typer.echo(
            f"  {low:.2f} to {high:.2f} us in program order if every price is off by its own; one after the other:"
        )
        for effect in found:
            price = listed.prices[effect.name]
            typer.echo(
                f"  {effect.low_us:>9.2f} to {effect.high_us:>9.2f} us   {effect.name:<28}"
                f"{price.low:g} to {price.high:g} {price.unit}: {price.uncertain}"
            )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        report.to_json(out / f"{name}.json")
        report.to_chrome_trace(out / f"{name}.trace.json")
        report.plot(out / f"{name}.png")
        typer.echo(f"  wrote {out / name}.json, .trace.json and .png")


@app.command("calibrate")
def calibrate_prices(
    file: Annotated[Path, typer.Argument(help="probes.json of 'validate_trn2.py --probes', measured on a device.")],
    out: Annotated[Path, typer.Option(help="Price list to write, for --prices.")] = Path("prices.json"),
    prices: Prices = None,
    modelled: Annotated[
        bool, typer.Option("--modelled", help="Take timings that the interpreter modelled: to try the command.")
    ] = False,
) -> None:
    """Turn measured timings into a price list; prices that no timing determines stay as they are, or as in --prices."""
    from .interpreter.install import real_nki_present
    from .probes.calibrate import calibrate
    from .probes.results import Results

    if real_nki_present():
        typer.echo("AWS's own nki is installed here, not the interpreter: take the file to another machine", err=True)
        raise typer.Exit(2)
    base = load_prices(prices)
    try:
        results = Results.load(file)
        if results.kind == "modelled" and not modelled:
            raise ValueError(f"{file}: 'kind' is 'modelled': prices would be made of themselves; measure on a device")
        priced, rows = calibrate(results, base)
    except (OSError, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    typer.echo(f"{results.kind} on {results.device}, launches of {results.logical_cores} cores")
    for row in rows:
        typer.echo(f"{row.timing:<28}{row.measured.ns:>10.1f} ns, the list says {row.modelled_ns:>10.1f} ns")
        if row.before is not None and row.after is not None:
            then, now = (f"{p.low:g} to {p.high:g}, {p.centre:g}" for p in (row.before, row.after))
            typer.echo(f"{'':<28}{row.constant}: {then} -> {now} {row.after.unit}")
        elif row.note:
            typer.echo(f"{'':<28}{row.note}")
    priced.save(out)
    typer.echo(f"written: {out}; use it with --prices {out}")
