"""One input projected by two weights that are held in different numbers."""

from __future__ import annotations

import numpy as np
from numba import prange

from .held import rounded_rows
from .panels import PANEL, Packed, times_panel
from .projections import FEW, Matrix, Norm, Weight
from .rows import normalise
from .scalar import Array, compiled
from .vectors import norm_rows


def norm_project_both(x: Matrix, norm: Norm, first: Weight, second: Weight, normed: Matrix, out: Matrix) -> None:
    """out = norm(x) W^T of two weights, the results side by side.

    Args:
        x: [rows, n]; first, second: [m, n] and [l, n]; normed: [rows, n], overwritten; out: [rows, m + l].
    """
    if len(x.array) <= FEW:
        norm_project_both_few(x.array, norm, first.packed, second.packed, normed.array, out.array)
        return
    normalise(x.array, *norm, normed.array)
    out.tensor[:, : first.outputs] = first.product(normed.tensor)
    out.tensor[:, first.outputs :] = second.product(normed.tensor)


@compiled(parallel=True)
def norm_project_both_few(x: Array, norm: Norm, first: Packed, second: Packed, normed: Array, out: Array) -> None:
    """`norm_project_both`, whatever the number of rows."""
    norm_rows(x, norm.weight, norm.eps, normed)
    rows, ahead = out.shape[0], first.data.shape[0]
    for_first = rounded_rows(normed) if first.rounds else normed
    for_second = rounded_rows(normed) if second.rounds else normed
    for panel in prange(ahead + second.data.shape[0]):
        found = np.empty((rows, PANEL), np.float32)
        if panel < ahead:
            times_panel(for_first, first, panel, found)
            place, width = panel * PANEL, min(PANEL, first.outputs - panel * PANEL)
        else:
            times_panel(for_second, second, panel - ahead, found)
            place = first.outputs + (panel - ahead) * PANEL
            width = min(PANEL, out.shape[1] - place)
        for i in range(rows):
            for j in range(width):
                out[i, place + j] = found[i, j]
