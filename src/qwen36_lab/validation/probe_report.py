"""Running the probes for somebody who watches: a line an answer, then what is to be done about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nki_kernels.interpreter import Target
from nki_kernels.interpreter.rules import RULES
from nki_kernels.interpreter.target import SDKS
from nki_kernels.probes.results import Answer, Measure, Results
from nki_kernels.probes.table import PROBES, TIMINGS

from .probes import Command, DeviceGone, Plan, ask_all, open_results, unexpected

MODELLED = Path(__file__).parents[3] / "profile_artifacts" / "probes" / "probes.json"
"""What the interpreter says of every timing, to compare a device's with."""

FINISHED, LOOK, GONE = 0, 1, 3
"""Exit codes: all is as expected; an answer asks for something to be switched off; the device is to be restarted."""


def run_probes(plan: Plan, console: Console, command: Command | None = None) -> int:
    """Ask what has no answer yet, show everything, and give the exit code."""
    known = len(open_results(plan).answers)
    console.print(f"{plan.device}; results in {plan.file}" + (f", {known} answers there already" if known else ""))
    try:
        for answer in ask_all(plan, command):
            console.print(line(answer), markup=False, highlight=False)
    except DeviceGone as gone:
        console.print(f"{gone}. Restart the instance and give the same command again: it goes on behind that probe.")
        return GONE
    results = Results.load(plan.file)
    show(results, console)
    return LOOK if unexpected(list(results.answers.values())) else FINISHED


def line(answer: Answer) -> str:
    """One answer."""
    error = "" if answer.error is None else f", error {answer.error:.1e}"
    speed = "" if answer.call_us is None else f", {answer.call_us:,.0f} us a call"
    rule = f", refused here by rule {answer.rule}, which was lifted" if answer.rule else ""
    why = f": {answer.message.splitlines()[-1][:160]}" if answer.message else ""
    return f"{answer.status:<8}{answer.probe}, {answer.where}{error}{speed}{rule}{why}"


def show(results: Results, console: Console) -> None:
    """All answers and timings, and what each unexpected answer means."""
    table = Table("probe", "alone", "inside a graph", "question", title="Probes")
    for name, probe in PROBES.items():
        cells = [results.answers.get(f"{name}, {where}") for where in ("alone", "inside")]
        if any(cells):
            table.add_row(name, *("-" if a is None else a.status for a in cells), probe.asks)
    console.print(table)
    if results.timings():
        console.print(times_table(results, expected() if results.kind == "measured" else {}))
        console.print("The timings are modelled." if results.kind == "modelled" else "The timings are measured.")
    for answer in results.answers.values():
        if answer.status in ("right", "skipped"):
            continue
        probe = PROBES[answer.probe]
        console.print(
            f"{answer.probe}, {answer.where}: {answer.status}. It means: {probe.means}. Switch off: {probe.off}."
        )
        for rule in probe.rules:
            console.print(f"  known as rule {rule}: {RULES[rule].says} Seen by {RULES[rule].source}.")


def expected() -> Mapping[str, Measure]:
    """Modelled figures of the timings, as far as this repository has them."""
    return Results.load(MODELLED).timings() if MODELLED.is_file() else {}


def times_table(results: Results, beside: Mapping[str, Measure]) -> Table:
    """Every timing, beside what was expected of it."""
    table = Table("timing", results.kind, "between", "modelled", "what", "price", title="ns a repeat")
    for name, measure in results.timings().items():
        timing, other = TIMINGS[name], beside.get(name)
        table.add_row(
            name, f"{measure.ns:,.1f}", f"{measure.low:,.1f} and {measure.high:,.1f}",
            "-" if other is None else f"{other.ns:,.1f} ({other.low:,.1f} to {other.high:,.1f})",
            timing.each, timing.constant or "-",
        )  # fmt: skip
    return table


def sdk_of(nki_version: str | None) -> str:
    """The SDK that a version of nki came with; the newest for a newer one, the target for none."""
    if nki_version is None:
        return Target().sdk
    number = tuple(int(part) for part in nki_version.split("+")[0].split(".")[:2])
    return next((sdk for sdk in reversed(SDKS) if Target(sdk=sdk).nki <= number), SDKS[0])
