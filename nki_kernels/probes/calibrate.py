"""From measured timings to a price list.

Each timing determines one price: the value with which the interpreter, pricing the very kernel that was run, says what
was measured. Prices depend on each other (a product's passes on the time to issue it), so they are solved for in turn
until none changes. A timing that no value explains changes nothing and is reported: there the model is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..interpreter.cost_table import Costs, Price
from ..interpreter.price_list import PriceList
from .modelled import Traces, traces
from .results import Measure, Results
from .table import TIMINGS

SWEEPS = 20
CLOSE = 2e-4
"""Two times are the same if they differ by less than this part."""

EXPLAINED = 0.02
"""A timing is explained if some price gives it within this part."""

_REACH = 20.0
"""A price is looked for between nothing and this many times its published high end; a speed as far either way."""


@dataclass(frozen=True)
class Row:
    """One timing after calibration.

    Attributes:
        timing: its name.
        measured: its figure.
        modelled_ns: of the finished list.
        constant: the price that it determined, if any.
        before, after: that price.
        note: why there is no new price, where there is none.
    """

    timing: str
    measured: Measure
    modelled_ns: float
    constant: str | None = None
    before: Price | None = None
    after: Price | None = None
    note: str = ""


def calibrate(results: Results, base: PriceList | None = None, name: str = "") -> tuple[PriceList, list[Row]]:
    """A price list by what was measured, and how each timing fits it.

    Args:
        base: prices of what no timing determines; the published ones unless given.
        name: of the new list; where it was measured unless given.
    Raises:
        ValueError: there is no timing.
    """
    base = base or PriceList()
    measured = results.timings()
    if not measured:
        raise ValueError("there is no timing of a probe whose values were right: nothing to calibrate by")
    cores = results.logical_cores
    priced = {timing: traces(TIMINGS[timing], max(cores, _least_cores(timing))) for timing in measured}
    asked = {timing: constant for timing in measured if (constant := TIMINGS[timing].constant) is not None}
    values, unexplained = _solve(priced, measured, asked, base)
    costs = replace(base.costs(), **values)
    prices, rows = dict(base.prices), []
    for timing, figure in measured.items():
        modelled, constant = priced[timing].ns(costs), asked.get(timing)
        if constant is None or timing in unexplained:
            rows.append(Row(timing, figure, modelled, constant, note=unexplained.get(timing, "")))
            continue
        after = _price(base.prices[constant], timing, figure, priced[timing], costs, constant, results)
        rows.append(Row(timing, figure, modelled, constant, base.prices[constant], after))
        prices[constant] = after
    return PriceList(name or f"{results.kind} by probes: {results.device}", prices), rows


def _least_cores(timing: str) -> int:
    from .table import PROBES

    return next(probe.cores for probe in PROBES.values() if any(t.name == timing for t in probe.timings))


def _solve(
    priced: Mapping[str, Traces], measured: Mapping[str, Measure], asked: Mapping[str, str], base: PriceList
) -> tuple[dict[str, float], dict[str, str]]:
    """Values of the prices asked for, and why the others have none."""
    centre = base.costs()
    values = {constant: getattr(centre, constant) for constant in asked.values()}
    unexplained: dict[str, str] = {}
    for _ in range(SWEEPS):
        moved = False
        unexplained = {}
        for timing, constant in asked.items():
            found = _value(priced[timing], replace(centre, **values), constant, measured[timing].ns, base)
            if found is None:
                unexplained[timing] = f"no value of {constant} gives it: the model is wrong there"
                found = getattr(centre, constant)
            moved = moved or abs(found - values[constant]) > CLOSE * max(abs(found), 1e-9)
            values[constant] = found
        if not moved:
            break
    return values, unexplained


def _value(traced: Traces, costs: Costs, constant: str, ns: float, base: PriceList) -> float | None:
    """The value of a price with which a timing is what was measured; None if there is none."""
    published = base.prices[constant]

    def off(value: float) -> float:
        return traced.ns(replace(costs, **{constant: value})) - ns

    now = getattr(costs, constant)
    if abs(off(now)) <= CLOSE * ns:
        return float(now)
    top = _REACH * max(published.high, 1.0 if published.unit == "x" else published.centre, 1e-9)
    found = _root(off, published.centre / _REACH if published.rate else 0.0, top, CLOSE * ns)
    return found if found is not None and abs(off(found)) <= EXPLAINED * ns else None


def _root(off: Callable[[float], float], low: float, high: float, close: float) -> float | None:
    """Where a monotone function crosses 0, by false position with halving; None if it does not between the two."""
    at_low, at_high = off(low), off(high)
    for value, at in ((low, at_low), (high, at_high)):
        if abs(at) <= close:
            return value
    if at_low * at_high > 0:
        return None
    side = 0
    for step in range(80):
        middle = (low + high) / 2 if step % 8 == 7 else (low * at_high - high * at_low) / (at_high - at_low)
        at = off(middle)
        if abs(at) <= close or high - low <= 1e-12 * max(abs(low), abs(high)):
            return middle
        if at * at_high > 0:
            high, at_high = middle, at
            at_low = at_low / 2 if side == -1 else at_low
            side = -1
        else:
            low, at_low = middle, at
            at_high = at_high / 2 if side == 1 else at_high
            side = 1
    return (low + high) / 2


def _price(
    before: Price, timing: str, figure: Measure, traced: Traces, costs: Costs, constant: str, results: Results
) -> Price:
    """The new price: a value for the figure and for both ends of its range, the other prices at their new centre."""
    centre = getattr(costs, constant)
    base = PriceList("", {constant: before})
    ends = [_value(traced, costs, constant, ns, base) for ns in (figure.low, figure.high)]
    known = [centre, *(end for end in ends if end is not None)]
    low, high = min(known), max(known)
    uncertain = "the ends of the list that the timings were modelled by"
    if results.kind == "measured":
        uncertain = f"the middle half of {figure.samples} differences between a long run and a short one"
    if TIMINGS[timing].keeps_high:
        high = max(high, before.high)
        uncertain = f"measured with the rest of the device idle; beyond that: {before.uncertain or 'not measured'}"
    return Price(
        low, centre, high, before.unit,
        "measured" if results.kind == "measured" else "inferred",
        f"probe timing {timing}: {figure.ns:.1f} ns a repeat, {results.kind}, {results.device}",
        uncertain if low != high else "",
    )  # fmt: skip
