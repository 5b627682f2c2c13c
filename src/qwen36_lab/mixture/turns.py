"""Two sides in one process, in turns, so that both see the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

THEIR_FORMS = ("grouped_mm", "eager")
"""`experts_implementation` of transformers: its default, and the loop over experts. The faster one counts."""

PAUSE = 0.02
"""Seconds before a side's turn: the other's threads wait for more work, spinning, for some milliseconds."""


def in_turns(ours: Callable[[], object], theirs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of each side, and how many times ours fits into theirs.

    Medians of rounds in turns, of which each is a side's second run in a row.

    Args:
        theirs: by THEIR_FORMS.
    """
    sides = {"ours": ours, **theirs}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            time.sleep(PAUSE)
            side()
            started = time.perf_counter()
            side()
            times[name].append(1e3 * (time.perf_counter() - started))
    medians = {name: statistics.median(each) for name, each in times.items()}
    fastest = min(theirs, key=medians.__getitem__)
    ratios = sorted(other / own for other, own in zip(times[fastest], times["ours"], strict=True))
    return {
        **{f"{name}_ms": median for name, median in medians.items()},
        "ratio": statistics.median(ratios),
        "least_ratio": ratios[0],
        "most_ratio": ratios[-1],
    }
