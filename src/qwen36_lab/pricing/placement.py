"""Experts split inside each over ranks, beside whole experts spread over them: modelled prices of a decode step.

Split, every rank has a quarter of the channels of all experts and the same work whatever rows choose. Spread, a rank
has 64 whole experts of 256, and all wait for the one that has most of a row's eight. A program is static: it has room
for eight a row on every rank, so that the worst routing is what it always multiplies; what the mean would cost is
priced as if each rank's program had exactly as many as it needs, which none has.
"""

from __future__ import annotations

from itertools import product
from math import comb
from typing import Any

from nki_kernels import mixture_examples
from nki_kernels.interpreter import PriceList, profile
from nki_kernels.profiling import Example

from .decode_layers import figures

RANKS, TOP_K, EXPERTS, INNER = 4, 8, 256, 512


def busiest() -> dict[int, float]:
    """How likely it is that the rank with most of a row's eight experts has so many, if all are alike likely."""
    own, out = EXPERTS // RANKS, dict.fromkeys(range(1, TOP_K + 1), 0.0)
    for counts in product(range(TOP_K + 1), repeat=RANKS - 1):
        last = TOP_K - sum(counts)
        if last >= 0:
            ways = comb(own, last)
            for count in counts:
                ways *= comb(own, count)
            out[max(*counts, last)] += ways / comb(EXPERTS, TOP_K)
    return out


def placements(prices: PriceList) -> list[dict[str, Any]]:
    """A row for each way and number format: us of one row, and of eight rows by worst routing."""
    rows = []
    for fp8 in (True, False):
        weights = "FP8" if fp8 else "bfloat16"
        missing = _us(mixture_examples.router(1), prices) - _us(
            mixture_examples.router(1, EXPERTS // RANKS), prices
        )  # its router has a rank's experts alone
        of_one = {
            n: _us(mixture_examples.experts(1, fp8, count=EXPERTS // RANKS, inner=INNER, top_k=n), prices) + missing
            for n in range(2, TOP_K + 1, 2)
        }
        mean = sum(share * of_one[n + n % 2] for n, share in busiest().items())
        several = _us(mixture_examples.experts(8, fp8, count=EXPERTS // RANKS, inner=INNER), prices) + missing
        spread = {"worst_us": of_one[TOP_K], "mean_us": mean, "eight_rows_us": several}
        split = {"worst_us": _us(mixture_examples.experts(1, fp8), prices)}
        split |= {"mean_us": split["worst_us"], "eight_rows_us": _us(mixture_examples.experts(8, fp8), prices)}
        rows += [
            {"weights": weights, "placement": "split"} | split,
            {"weights": weights, "placement": "spread"} | spread,
        ]
    return rows


def _us(example: Example, prices: PriceList) -> float:
    _, report = profile(example.kernel, *example.args, prices=prices, world=example.ranks, **example.kwargs)
    centre: float = figures(report, prices)["us"]["centre"]
    return centre
