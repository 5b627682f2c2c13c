"""What the interpreter says of a probe: its values, the rules that refuse it, and its timings by a price list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..interpreter.context import Core
from ..interpreter.cost_table import Costs
from ..interpreter.launch import run
from ..interpreter.price_list import LEVELS, PriceList
from ..interpreter.rules import RuleError
from ..interpreter.schedule import build, program_order
from ..interpreter.target import Sdk, Target
from .probe import Probe, Run, Timing


def refused_by(probe: Probe, cores: int, sdk: Sdk = "2.31") -> str:
    """The rule by which the interpreter refuses a probe when it is asked to be cautious; empty if none does."""
    target = Target(sdk=sdk, checks="cautious")
    for asked in [*probe.checks, *(timing.run for timing in probe.timings)]:
        try:
            launched(asked, cores, asked.repeats, target)
        except RuleError as error:
            return error.broken.id
    return ""


def launched(asked: Run, cores: int, repeats: int, target: Target | None = None) -> tuple[np.ndarray, list[Core]]:
    """A run in the interpreter: its result, and the traces of its cores. Rules are lifted unless a target has them."""
    kernel: Any = asked.kernel[cores]
    target = target or Target(checks="instruction")
    result, launch = run(kernel, asked.arguments(cores), asked.keywords(repeats), target)
    return np.asarray(result), launch.cores


@dataclass(frozen=True)
class Traces:
    """A timing's short and long run, traced once and priced as often as wanted.

    Attributes:
        short, long: traces of the cores.
        repeats: how many repeats the long run has more.
    """

    short: list[Core]
    long: list[Core]
    repeats: int

    def ns(self, costs: Costs) -> float:
        """Modelled time of one repeat."""
        spans = [program_order(build(cores, costs), len(cores), costs) for cores in (self.short, self.long)]
        return (spans[1] - spans[0]) / self.repeats

    def between(self, prices: PriceList) -> tuple[float, float, float]:
        """The same at the low end of a price list, its centre and its high end."""
        low, centre, high = (self.ns(prices.costs(level)) for level in LEVELS)
        return min(low, centre), centre, max(high, centre)


def traces(timing: Timing, cores: int) -> Traces:
    """Both runs of a timing in the interpreter, on a number of physical cores."""
    short, long = timing.modelled
    return Traces(launched(timing.run, cores, short)[1], launched(timing.run, cores, long)[1], long - short)
