"""Drawing tokens from logits: `naive` is the definition and what graphs run, `numba` is compiled for a CPU."""

from .naive import (
    COLUMNS,
    GREEDY,
    MOST_CANDIDATES,
    UNDECIDED,
    Ranking,
    draw,
    most_likely,
    running_sum,
    sample,
    sample_all,
)
from .penalties import TokenCounts, penalise

__all__ = [
    "COLUMNS",
    "GREEDY",
    "MOST_CANDIDATES",
    "UNDECIDED",
    "Ranking",
    "TokenCounts",
    "draw",
    "most_likely",
    "penalise",
    "running_sum",
    "sample",
    "sample_all",
]
