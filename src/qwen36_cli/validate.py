"""`qwen36 validate`: every NKI kernel against its torch twin, then a running server; or the device's open questions."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from nki_kernels.interpreter.install import real_nki_present
from nki_kernels.probes.results import WHERES, Where
from nki_kernels.probes.table import PROBES
from qwen36_lab.validation.kernels import Outcome, cases, neuron_device, run
from qwen36_lab.validation.memory import memory
from qwen36_lab.validation.probe_report import run_probes, sdk_of
from qwen36_lab.validation.probes import Plan
from qwen36_lab.validation.server import QUICK, Check, Server, Sizes, coherence, decode_rate, prefix_reuse
from qwen36_lab.validation.unit_tests import unit_tests
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.provenance import provenance


class Device(StrEnum):
    """What runs the kernels, and what the server is said to run on."""

    NEURON = "neuron"
    INTERPRETER = "interpreter"


def validate(
    device: Annotated[Device, typer.Option(help="A Neuron device, or the interpreter of this repository on CPU.")],
    base_url: Annotated[str | None, typer.Option(help="Of a running server, without /v1; none: kernels alone.")] = None,
    model: Annotated[str | None, typer.Option(help="Name it is served under; the first one by default.")] = None,
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="If the server asks for one.")] = "none",
    logical_cores: Annotated[int, typer.Option(min=1, max=2, help="Physical cores of a logical one (LNC).")] = 2,
    tests: Annotated[
        bool, typer.Option("--tests", help="Run this checkout's unit tests first: all that this machine can run.")
    ] = False,
    server_only: Annotated[bool, typer.Option("--server-only", help="Run no kernels.")] = False,
    prompt_tokens: Annotated[
        int, typer.Option(min=256, help="Of the prompt that is repeated.")
    ] = Sizes().prompt_tokens,
    quick: Annotated[bool, typer.Option("--quick", help="Short runs, to see that all of it works.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("profile_artifacts/validation"),
    probes: Annotated[
        bool, typer.Option("--probes", help="Ask the device's open questions, and nothing else; see docs/trn2.md.")
    ] = False,
    only: Annotated[list[str] | None, typer.Option(help="Of the probes, this one; may be given again.")] = None,
    again: Annotated[list[str] | None, typer.Option(help="Ask this probe although its answer is known.")] = None,
    where: Annotated[Where | None, typer.Option(help="Ask the probes there alone; both by default.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for a probe, after which it hangs.")] = 900.0,
    prices: Annotated[Path | None, typer.Option(help="Price list of modelled timings (interpreter).")] = None,
) -> None:
    """Validate an installation: every NKI kernel against its torch twin, and a running server.

    Prints a table, writes a JSON file a check and summary.json, and exits with 1 if anything failed. On a Trn2 the
    kernels come first and the server afterwards (--server-only), since a server holds all cores of the device. With
    --probes, what nobody has measured yet: one tiny kernel a question, each in a process of its own; the same command
    goes on where it stopped.
    """
    asks = {"--only": only, "--again": again, "--where": where, "--prices": prices}
    if not probes and (given := [name for name, value in asks.items() if value]):
        raise typer.BadParameter(f"{given[0]} is for --probes")
    if probes:
        if base_url is not None or server_only:
            raise typer.BadParameter("--probes asks no server: leave --base-url and --server-only out")
        raise typer.Exit(ask_probes(device, logical_cores, only, again, where, timeout, prices, out))
    if server_only and base_url is None:
        raise typer.BadParameter("--server-only needs --base-url")
    console = Console(width=max(120, Console().width))
    sizes = QUICK if quick else Sizes(prompt_tokens=prompt_tokens)
    asked: list[Callable[[], Check]] = [unit_tests] if tests else []
    if not server_only:
        asked.append(lambda: kernels(device, logical_cores, console))
    if base_url is not None:
        asked += list(server_checks(base_url, model, api_key, sizes))
        asked.append(memory)
    checks = []
    for ask in asked:
        checks.append(ask())
        write(out, checks[-1], device)
    show(checks, device, console)
    summary = {
        "provenance": provenance("measured").as_dict(),
        "device": machine(device),
        "checks": {check.name: check.passed for check in checks},
        "passed": all(check.passed is not False for check in checks) and any(check.passed for check in checks),
        "problems": {check.name: check.problems for check in checks if check.problems},
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    console.print(f"written: {out}/*.json")
    if not summary["passed"]:
        raise typer.Exit(1)


def ask_probes(
    device: Device, logical_cores: int, only: list[str] | None, again: list[str] | None, place: Where | None,
    timeout: float, prices: Path | None, out: Path,
) -> int:  # fmt: skip
    """Ask the open questions; gives the exit code."""
    console = Console(width=max(120, Console().width))
    real = real_nki_present()
    if real != (device is Device.NEURON):
        there = "is there" if real else "is not there"
        console.print(f"AWS's own nki {there}: --device {device.value} cannot run")
        return 2
    try:
        plan = Plan(
            file=out / "probes.json",
            kind="measured" if real else "modelled",
            device=machine(device) + (f", nki {version('nki')}" if real else ""),
            cores=logical_cores,
            names=tuple(only or PROBES),
            wheres=WHERES if place is None else (place,),
            again=tuple(again or ()),
            timeout=timeout,
            sdk=sdk_of(version("nki") if real else None),
            prices=prices,
        )
        return run_probes(plan, console)
    except ConfigError as error:
        console.print(f"error: {error}", markup=False)
        return 2


def machine(device: Device) -> str:
    """In words, for the results: nothing measured elsewhere may pass for a measurement of a Trn2."""
    if device is Device.INTERPRETER:
        return "no Neuron device: kernels in the interpreter, server on whatever it was started on"
    nodes = sorted(path.name for path in Path("/dev").glob("neuron[0-9]*"))
    return f"Neuron devices {', '.join(nodes)}" if nodes else "no Neuron device found in /dev"


def kernels(device: Device, logical_cores: int, console: Console) -> Check:
    """Run every kernel on a physical core (in the interpreter) and on a logical one, and compare with the twins."""
    target = None
    if device is Device.NEURON:
        try:
            target = neuron_device()
        except RuntimeError as error:
            return Check("kernels", False, {}, [str(error)])
    elif real_nki_present():
        return Check("kernels", None, {}, ["AWS's own nki is installed, not the interpreter: use --device neuron"])
    # A device takes launches of its own LNC degree alone.
    degrees = [logical_cores] if target is not None else [1, 2]
    outcomes: list[Outcome] = []
    for cores in degrees:
        for case in cases(cores):
            outcome = run(case, cores, target)
            outcomes.append(outcome)
            console.print(line(outcome, cores), markup=False, highlight=False)
    failed = [
        f"{o.kernel}, {o.case}: {o.problem or f'error {o.error:.1e}, bar {o.bar:.0e}'}"
        for o in outcomes
        if not o.passed
    ]
    listed = [asdict(outcome) | {"passed": outcome.passed} for outcome in outcomes]
    return Check("kernels", not failed, {"cores": degrees, "cases": listed}, failed)


def line(outcome: Outcome, cores: int) -> str:
    """One kernel's outcome."""
    error = "failed" if outcome.error is None else f"error {outcome.error:.1e}"
    speed = "" if outcome.call_us is None else f", {outcome.call_us:,.0f} us a call"
    verdict = "ok  " if outcome.passed else "FAIL"
    return f"{verdict} {outcome.kernel} ({outcome.case}), {cores} core(s): {error}, bar {outcome.bar:.0e}{speed}"


def server_checks(base_url: str, model: str | None, api_key: str, sizes: Sizes) -> Iterator[Callable[[], Check]]:
    """The checks of a server; one that cannot be reached, or that answers with an error, fails them."""
    seed = uuid.uuid4().hex[:8]  # so that no prompt was seen before

    def guarded(name: str, ask: Callable[[Server], Check]) -> Callable[[], Check]:
        def check() -> Check:
            try:
                return ask(Server(base_url, model, api_key))
            except httpx.HTTPError as error:
                return Check(name, False, {}, [f"{type(error).__name__}: {error}"])

        return check

    yield guarded("coherence", lambda server: coherence(server, sizes))
    yield guarded("decode rate", lambda server: decode_rate(server, sizes, seed))
    yield guarded("prefix reuse", lambda server: prefix_reuse(server, sizes, seed))


def write(out: Path, check: Check, device: Device) -> None:
    """A check's own file."""
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"provenance": provenance("measured").as_dict(), "device": machine(device)}
    name = check.name.replace(" ", "_")
    (out / f"{name}.json").write_text(json.dumps(result | check.as_dict(), indent=1) + "\n", encoding="utf-8")


def show(checks: list[Check], device: Device, console: Console) -> None:
    """The verdicts."""
    table = Table("check", "verdict", "what", title=f"Validation: {machine(device)}")
    for check in checks:
        verdict = {True: "passed", False: "FAILED", None: "not made"}[check.passed]
        table.add_row(check.name, verdict, "; ".join(check.problems[:4]) or headline(check))
    console.print(table)


def headline(check: Check) -> str:
    """The figures worth a look."""
    figures = check.figures
    if check.name == "tests":
        return str(figures["summary"])
    if check.name == "kernels":
        return f"{len(figures['cases'])} cases, worst at {worst(figures['cases']):.0%} of its bar"
    if check.name == "coherence":
        return f"{len(figures['answers'])} answers"
    if check.name == "decode rate":
        return ", ".join(f"{name}: {found['tokens_per_second']:.1f} tok/s" for name, found in figures.items())
    if check.name == "prefix reuse":
        seconds = figures["first_token_seconds"]
        reused = figures["cached_tokens"]["warm"]
        return f"first token {seconds['cold']:.3f} s cold, {seconds['warm']:.3f} s warm, {reused} tokens reused"
    return f"{figures['device_gib']:.1f} GiB on the device"


def worst(listed: list[dict[str, Any]]) -> float:
    """The largest error as a part of its bar, where there is one."""
    return max(case["error"] / case["bar"] for case in listed if case["bar"])
