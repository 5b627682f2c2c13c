"""What a probe is: a question that only a device answers, asked by small kernels whose values are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, ...]

MODEL_REPEATS = (16, 48)
"""Repeats of a timing's short and long run where it is modelled: multiples of every turn that kernels take, and enough
that what begins and ends a run is over. A model has no noise, so few do."""


@dataclass(frozen=True)
class Run:
    """A kernel, its arguments, and what it must give.

    Attributes:
        kernel: takes the arguments, then ``options`` and ``repeats``.
        arguments: makes the arguments for a number of physical cores; the same every time.
        expected: (arguments, repeats, core) -> the result's entry of that core, float64 or exact.
        tolerance: largest error allowed, as a part of the largest expected value; 0 for the very bits.
        options: further arguments, known at compile time.
        repeats: how often the kernel repeats what it does when it is asked for its values; 0 where it takes no number.
    """

    kernel: Any
    arguments: Callable[[int], Arrays]
    expected: Callable[[Arrays, int, int], np.ndarray]
    tolerance: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 0

    def keywords(self, repeats: int) -> dict[str, Any]:
        """The compile-time arguments."""
        return {**self.options, "repeats": repeats} if self.repeats else dict(self.options)

    def error(self, found: np.ndarray, arguments: Arrays, repeats: int) -> float:
        """Largest error of a result as a part of the largest expected value; infinite where it has another shape."""
        worst = 0.0
        for core in range(found.shape[0]):
            wanted = np.asarray(self.expected(arguments, repeats, core), dtype=np.float64)
            if found.shape[1:] != wanted.shape:
                return float("inf")
            off = np.abs(found[core].astype(np.float64) - wanted).max() / max(float(np.abs(wanted).max()), 1e-30)
            worst = max(worst, float("inf") if np.isnan(off) else float(off))
        return worst


@dataclass(frozen=True)
class Timing:
    """What one repeat of a run takes, by the difference between a long run and a short one.

    Attributes:
        name: unique among all probes.
        run: what is repeated.
        each: what one repeat is, in words.
        constant: the price that it determines, by its name in the cost table; None for a figure to look at.
        repeats: of the short and the long run on a device.
        modelled: of the short and the long run in the interpreter.
        keeps_high: the price's high end stays where it was, since the device was idle otherwise.
    """

    name: str
    run: Run
    each: str
    constant: str | None = None
    repeats: tuple[int, int] = (64, 1088)
    modelled: tuple[int, int] = MODEL_REPEATS
    keeps_high: bool = False


@dataclass(frozen=True)
class Probe:
    """A question.

    Attributes:
        name: short, unique.
        asks: the question.
        checks: runs that answer it by their values.
        timings: what else is measured; their values are checked too.
        rules: rules of the interpreter that it breaks on purpose.
        means: what another answer than the expected one means.
        off: what to switch off then.
        cores: physical cores that it needs at least.
        until: last SDK that has what it uses.
    """

    name: str
    asks: str
    means: str
    off: str
    checks: tuple[Run, ...] = ()
    timings: tuple[Timing, ...] = ()
    rules: tuple[str, ...] = ()
    cores: int = 1
    until: str = "2.33"
