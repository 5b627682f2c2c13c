"""All probes, each in a process of its own with a time limit, and a results file that the next run goes on from."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nki_kernels.probes.results import Answer, Kind, Measure, Results, Where, key
from nki_kernels.probes.table import PROBES
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.provenance import provenance

SANITY = "sanity"

LAST_WORDS = 20
"""Lines of a failed process's log that its answer quotes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask and how.

    Attributes:
        file: the results; what it holds already is not asked again.
        kind: measured on a device, or modelled by the interpreter.
        device: in words.
        cores: physical cores of a launch, the LNC degree of a device.
        names: probes to ask.
        wheres: places to ask them in.
        again: probes to ask although there is an answer.
        timeout: seconds for one probe in one place, compilation included.
        sdk: of the installation; probes that it has no functions for are skipped.
        prices: price list of the modelled timings.
    """

    file: Path
    kind: Kind
    device: str
    cores: int
    names: tuple[str, ...] = tuple(PROBES)
    wheres: tuple[Where, ...] = ("alone", "inside")
    again: tuple[str, ...] = ()
    timeout: float = 900.0
    sdk: str = "2.31"
    prices: Path | None = None

    def __post_init__(self) -> None:
        for field in ("names", "again"):
            for name in getattr(self, field):
                if name not in PROBES:
                    raise ConfigError(field, name, "is no probe", f"There are: {', '.join(PROBES)}")
        if not self.timeout > 0:
            raise ConfigError("timeout", self.timeout, "must be more than 0 seconds", "Raise it")


class DeviceGone(Exception):
    """After a probe that hung, the device answers nothing at all: the rest waits for a restart."""


Command = Callable[[str, Where, Path], list[str]]
"""(probe, place, file for the answer) -> the command line that asks."""


def ask_all(plan: Plan, command: Command | None = None) -> Iterator[Answer]:
    """Ask everything that has no answer yet, giving each answer as it comes; the file is written after each.

    Raises:
        ConfigError: the file is of another kind of device or another launch.
        DeviceGone: nothing can be asked any more; the same call later goes on behind the probe that hung.
    """
    results, how = open_results(plan), command or child_command(plan)
    logs = plan.file.parent / "probes"
    logs.mkdir(parents=True, exist_ok=True)
    for name in plan.names:
        for where in plan.wheres:
            at, known = key(name, where), results.answers.get(key(name, where))
            if known is not None and known.status == "started":
                # The machine went down with it, or somebody ended everything.
                lost = "no answer was left: the run ended, or the machine, while this was asked"
                known = results.answers[at] = replace(known, status="hung", message=lost)
                results.save(plan.file)
                yield known
            if known is not None and name not in plan.again:
                continue
            answer = _skipped(plan, name, where)
            if answer is None:
                results.answers[at] = Answer(name, where, "started")
                results.save(plan.file)
                try:
                    answer = ask_one(name, where, how, plan.timeout, logs / f"{name}.{where}.log")
                except BaseException:
                    del results.answers[at]  # ended by hand: to be asked again
                    results.save(plan.file)
                    raise
            results.answers[at] = answer
            results.save(plan.file)
            yield answer
            if answer.status == "hung" and plan.kind == "measured":
                sane = ask_one(SANITY, "alone", how, plan.timeout, logs / "sanity.after.log")
                if sane.status != "right":
                    raise DeviceGone(f"after '{at}' the device answers nothing ({sane.status}: {sane.message[:200]})")


def open_results(plan: Plan) -> Results:
    """The results so far, or new ones.

    Raises:
        ConfigError: those in the file are of another kind or launch, or cannot be read.
    """
    fresh = Results(plan.kind, plan.device, plan.cores, provenance(plan.kind).as_dict())
    if not plan.file.exists():
        return fresh
    remedy = "Give another folder with --out, or remove the file"
    try:
        known = Results.load(plan.file)
    except ValueError as error:
        raise ConfigError("out", str(plan.file), str(error), remedy) from error
    for field in ("kind", "device", "logical_cores"):
        if getattr(known, field) != getattr(fresh, field):
            was = f"holds answers with {field} {getattr(known, field)!r}, now it is {getattr(fresh, field)!r}"
            raise ConfigError("out", str(plan.file), was, remedy)
    return replace(known, provenance=fresh.provenance)


def _skipped(plan: Plan, name: str, where: Where) -> Answer | None:
    probe = PROBES[name]
    if plan.kind == "measured" and probe.cores > plan.cores:
        return Answer(name, where, "skipped", message=f"needs a logical core of {probe.cores} physical ones")
    if _number(plan.sdk) > _number(probe.until):
        return Answer(name, where, "skipped", message=f"what it uses went after SDK {probe.until}")
    return None


def _number(sdk: str) -> tuple[int, ...]:
    return tuple(int(part) for part in sdk.split("."))


def child_command(plan: Plan) -> Command:
    """The command line of `probe_child`."""

    def command(name: str, where: Where, answer: Path) -> list[str]:
        words = [sys.executable, "-m", "qwen36_lab.validation.probe_child", name, where]
        words += ["--answer", str(answer), "--cores", str(plan.cores)]
        if plan.kind == "measured":
            words.append("--neuron")
        return words + (["--prices", str(plan.prices)] if plan.prices else [])

    return command


def ask_one(name: str, where: Where, command: Command, timeout: float, log: Path) -> Answer:
    """Ask one probe in a process of its own, which is ended, with all that it started, when its time is over."""
    flags = f"{os.environ.get('NEURON_CC_FLAGS', '')} --auto-cast=none".strip()  # or float32 is multiplied in bfloat16
    with tempfile.TemporaryDirectory() as folder, log.open("wb") as sink:
        file = Path(folder) / "answer.json"
        process = subprocess.Popen(
            command(name, where, file),
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "NEURON_CC_FLAGS": flags},
        )
        try:
            status = _wait(process, timeout)
        except subprocess.TimeoutExpired:
            gone = _end(process)
            left = "" if gone else "; its process cannot be ended, so the device is stuck in the driver"
            return Answer(name, where, "hung", message=f"no answer in {timeout:g} s{left}", seconds=timeout)
        except BaseException:
            _end(process)
            raise
        if status == 0 and file.is_file():
            content = json.loads(file.read_text(encoding="utf-8"))
            timings = {timing: Measure(**measure) for timing, measure in content.pop("timings").items()}
            return Answer(**content, timings=timings)
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return Answer(name, where, "failed", message=f"ended with {how}: {_last_words(log)}")


def _wait(process: subprocess.Popen[bytes], timeout: float) -> int:
    return process.wait(timeout)


def _end(process: subprocess.Popen[bytes]) -> bool:
    """End a process and its group; whether it is gone: one that waits inside the driver may not go."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        return False
    return True


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "\n".join(lines[-LAST_WORDS:])[-2000:]


def unexpected(answers: Sequence[Answer]) -> list[Answer]:
    """Answers that something has to be done about: whatever was not right, but for what a rule refuses here anyway."""
    return [a for a in answers if a.status not in ("right", "skipped") and not PROBES[a.probe].rules]
