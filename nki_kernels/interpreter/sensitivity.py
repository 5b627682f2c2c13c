"""Which uncertain prices a kernel's time depends on."""

import math
from dataclasses import dataclass, replace

from .context import Core
from .cost_table import Costs
from .price_list import PriceList
from .schedule import build, program_order


@dataclass(frozen=True)
class Effect:
    """What one uncertain price does to a kernel's time in program order, all others at their centre.

    Attributes:
        name: The price.
        low_us, high_us: Time with the price where it costs least, and most.
    """

    name: str
    low_us: float
    high_us: float

    @property
    def spread_us(self) -> float:
        """How far apart the two are; a cheaper instruction can also make a schedule longer."""
        return abs(self.high_us - self.low_us)


def likely(centre_us: float, found: list[Effect]) -> tuple[float, float]:
    """Range of a time if every price is off by its own, up or down: the deviations' root sum square."""
    below = math.hypot(*(max(0.0, centre_us - min(e.low_us, e.high_us)) for e in found))
    above = math.hypot(*(max(0.0, max(e.low_us, e.high_us) - centre_us) for e in found))
    return centre_us - below, centre_us + above


def effects(cores: list[Core], prices: PriceList | None = None) -> list[Effect]:
    """Every uncertain price that changes the time, the largest first.

    Args:
        cores: Traces of a launch.
        prices: The published list unless given.
    """
    prices = prices or PriceList()
    centre = prices.costs()

    def time(costs: Costs) -> float:
        return program_order(build(cores, costs), len(cores), costs) / 1e3

    found = []
    for name, price in prices.prices.items():
        if price.low == price.high:
            continue
        ends = (price.high, price.low) if price.rate else (price.low, price.high)
        low, high = (time(replace(centre, **{name: value})) for value in ends)
        found.append(Effect(name, low, high))
    return sorted((e for e in found if e.spread_us > 1e-6), key=lambda e: -e.spread_us)
