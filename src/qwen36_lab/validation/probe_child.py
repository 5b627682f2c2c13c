"""One probe in a process of its own: `python -m qwen36_lab.validation.probe_child`, which `probes` starts.

A kernel that hangs a device takes its process with it, and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import ml_dtypes
import numpy as np
import torch
import typer
from torch import Tensor

from nki_kernels.interpreter import PriceList, Target, compiling_for
from nki_kernels.probes.memory import double
from nki_kernels.probes.probe import Probe, Run, Timing
from nki_kernels.probes.results import Answer, Measure, Status, Where
from nki_kernels.probes.table import PROBES
from qwen36_lab.validation.kernels import neuron_device
from qwen36_lab.validation.surround import around

SAMPLES = 15
"""Differences of a long and a short run that a timing is made of."""

_BITS = {"bfloat16": (np.int16, torch.bfloat16)}


def main(
    probe: str,
    where: str,
    answer: Annotated[Path, typer.Option(help="File to write the answer to.")],
    cores: Annotated[int, typer.Option(help="Physical cores of a launch.")],
    neuron: Annotated[bool, typer.Option(help="Run on a Neuron device, not in the interpreter.")] = False,
    prices: Annotated[Path | None, typer.Option(help="Price list of the modelled timings.")] = None,
) -> None:
    """Ask one probe in one place."""
    asked, began = PROBES[probe], time.monotonic()
    place: Where = "inside" if where == "inside" else "alone"
    device = neuron_device() if neuron else None
    found = ask(asked, place, max(cores, asked.cores), device)
    if device is None:
        found = modelled(found, asked, max(cores, asked.cores), PriceList.load(prices) if prices else PriceList())
    found = dataclasses.replace(found, seconds=round(time.monotonic() - began, 3))
    answer.write_text(json.dumps(dataclasses.asdict(found)), encoding="utf-8")


def ask(probe: Probe, where: Where, cores: int, device: torch.device | None) -> Answer:
    """Run everything that a probe consists of, compare values, and on a device measure; whatever is raised is told."""
    worst, timings, call_us, too_much = 0.0, {}, None, ""
    timed = [] if device is None else list(probe.timings)
    runs = [(run, run.repeats) for run in probe.checks]
    runs += [(t.run, t.repeats[0] if device is not None else t.modelled[0]) for t in probe.timings]
    try:
        for run, repeats in runs:
            off, problem = check(run, where, cores, repeats, device)
            worst = max(worst, off)
            too_much = too_much or problem
        for timing in timed if not too_much else []:
            timings[timing.name], call_us = measure(timing, where, cores, device)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"[-2000:]
        return Answer(probe.name, where, "refused" if _by_compiler(text) else "failed", message=text)
    status: Status = "wrong" if too_much else "right"
    known = None if worst == float("inf") else worst
    return Answer(probe.name, where, status, known, too_much, call_us=call_us, timings=timings)


def check(run: Run, where: Where, cores: int, repeats: int, device: torch.device | None) -> tuple[float, str]:
    """Largest error of a run, and what is wrong with it, if anything."""
    arguments = run.arguments(cores)
    call, given = launcher(run, cores, repeats), [to_torch(array) for array in arguments]
    if where == "alone":
        (found,) = compute(lambda: (call(*(_placed(tensor, device) for tensor in given)),), device)
    else:
        found, beside, *seen = compute(lambda: around(call, launcher(DOUBLE, cores, 0), given, device), device)
        for number, (before, after) in enumerate(zip(given, seen, strict=True)):
            if not torch.equal(before, after):
                return float("inf"), f"the graph around the kernel changed argument {number}: nothing is known of it"
        if not bool((beside == 2).all()):
            return float("inf"), "another kernel in the same graph gave wrong values"
    error = run.error(to_numpy(found), arguments, repeats)
    shown = "another shape" if error == float("inf") else f"error {error:.1e}, at most {run.tolerance:.0e}"
    return error, "" if error <= run.tolerance else f"{run.kernel.__name__}: {shown}"


def launcher(run: Run, cores: int, repeats: int) -> Callable[..., Tensor]:
    """The kernel of a run, on a number of physical cores."""
    kernel, keywords = run.kernel[cores], run.keywords(repeats)

    def call(*tensors: Any) -> Any:
        # A probe asks the device what the rules of the interpreter would refuse.
        with compiling_for(Target(checks="instruction")):
            return kernel(*tensors, **keywords)

    return call


DOUBLE = Run(double, lambda cores: (), lambda args, repeats, core: np.zeros(0))
"""The kernel that is launched beside the one that is asked."""


def compute(graph: Callable[[], tuple[Tensor, ...]], device: torch.device | None) -> list[Tensor]:
    """The graph's results on the host, run as one graph."""
    results = graph()
    if device is not None:
        import torch_xla.core.xla_model as xm

        xm.mark_step()
        xm.wait_device_ops()
    return [tensor.cpu() for tensor in results]


def measure(timing: Timing, where: Where, cores: int, device: torch.device | None) -> tuple[Measure, float]:
    """A timing on a device, and the median time of a call of its short run in microseconds."""
    import torch_xla.core.xla_model as xm

    given = [_placed(to_torch(array), device) for array in timing.run.arguments(cores)]
    short, long = (launcher(timing.run, cores, repeats) for repeats in timing.repeats)

    def seconds(call: Callable[..., Tensor]) -> float:
        began = time.perf_counter()
        if where == "alone":
            call(*given)
        else:
            around(call, launcher(DOUBLE, cores, 0), given, device)
        xm.mark_step()
        xm.wait_device_ops()
        return time.perf_counter() - began

    for call in (short, long):
        seconds(call)  # compiles
        seconds(call)
    pairs = [(seconds(short), seconds(long)) for _ in range(SAMPLES)]
    more = timing.repeats[1] - timing.repeats[0]
    return summary([1e9 * (b - a) / more for a, b in pairs]), 1e6 * statistics.median(a for a, _ in pairs)


def summary(values: list[float]) -> Measure:
    """Median and middle half."""
    low, middle, high = statistics.quantiles(values, n=4)
    return Measure(middle, low, high, len(values))


def modelled(found: Answer, probe: Probe, cores: int, prices: PriceList) -> Answer:
    """The answer with the rule that refuses the probe here, and modelled timings where it was asked alone."""
    from nki_kernels.probes.modelled import refused_by, traces

    rule = refused_by(probe, cores)
    timings = {}
    if found.where == "alone" and found.status == "right":
        for timing in probe.timings:
            low, centre, high = traces(timing, cores).between(prices)
            timings[timing.name] = Measure(centre, low, high)
    return dataclasses.replace(found, rule=rule, timings=timings)


def to_torch(array: np.ndarray) -> Tensor:
    """The array as a tensor of the same bits."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Values, bfloat16 as float32."""
    tensor = tensor.detach().cpu()
    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def _placed(tensor: Tensor, device: torch.device | None) -> Tensor:
    return tensor.clone() if device is None else tensor.to(device)


def _by_compiler(text: str) -> bool:
    """Whether an error is the compiler's: it has codes, and names itself."""
    return any(mark in text for mark in ("NCC_", "neuronx-cc", "nki.compiler", "CompilationError", "KernelError"))


if __name__ == "__main__":
    typer.run(main)
