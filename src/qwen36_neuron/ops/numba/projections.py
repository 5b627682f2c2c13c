"""Projections of a few rows, each fused with what comes before or after it.

At a few rows a projection costs what reading its weight costs. A weight is read once here, whatever the number of rows,
in the layout that a checkpoint has it in, [out, in]. Matrix libraries come into their own with more rows: see `FEW`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import prange

from .rows import activate, normalise
from .scalar import Array, array, compiled, silu, zero
from .vectors import norm_rows

FEW = 8
"""Rows up to which these are at least as fast as a matrix library's product."""

COLUMNS = 16
"""Outputs of one task: enough work to hide what handing it out costs, little enough to share evenly."""

Four = tuple[float, float, float, float]


class Matrix(NamedTuple):
    """fp32 memory as the matrix library and as the fused operations see it, [rows, n] and contiguous."""

    tensor: torch.Tensor
    array: Array

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Matrix:
        return cls(tensor, array(tensor))

    @classmethod
    def empty(cls, rows: int, columns: int) -> Matrix:
        return cls.of(torch.empty(rows, columns))


class Norm(NamedTuple):
    """An RMSNorm: its factors [n] and its epsilon, an fp32 number."""

    weight: Array
    eps: float


def norm_project(x: Matrix, norm: Norm, weight: Matrix, normed: Matrix, out: Matrix) -> None:
    """out = norm(x) W^T.

    Args:
        x: [rows, n]; weight: [m, n]; normed: [rows, n], overwritten; out: [rows, m].
    """
    if len(x.array) <= FEW:
        _norm_project(x.array, *norm, weight.array, normed.array, out.array)
        return
    normalise(x.array, *norm, normed.array)
    torch.mm(normed.tensor, weight.tensor.t(), out=out.tensor)


def project_add(x: Matrix, weight: Matrix, out: Matrix) -> None:
    """out += x W^T, with x [rows, n], weight [m, n] and out [rows, m]."""
    if len(x.array) <= FEW:
        _project_add(x.array, weight.array, out.array)
        return
    torch.addmm(out.tensor, x.tensor, weight.tensor.t(), out=out.tensor)


def norm_swiglu(x: Matrix, norm: Norm, weight: Matrix, normed: Matrix, out: Matrix) -> None:
    """out = silu(gate) * up of norm(x) W^T.

    Args:
        x: [rows, n]; weight: [2 m, n], gates first; normed: [rows, n], overwritten; out: [rows, m].
    """
    if len(x.array) <= FEW:
        _norm_swiglu(x.array, *norm, weight.array, normed.array, out.array)
        return
    normalise(x.array, *norm, normed.array)
    activate(array(torch.mm(normed.tensor, weight.tensor.t())), out.array)


@compiled()
def four_by_two(x: Array, w: Array, u: Array) -> tuple[Four, Four]:
    """Dot products of the four rows of x with w and with u: every number loaded is used twice or four times."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zero
    for k in range(w.shape[0]):
        x0, x1, x2, x3 = x[0, k], x[1, k], x[2, k], x[3, k]
        a0 += x0 * w[k]
        a1 += x1 * w[k]
        a2 += x2 * w[k]
        a3 += x3 * w[k]
        b0 += x0 * u[k]
        b1 += x1 * u[k]
        b2 += x2 * u[k]
        b3 += x3 * u[k]
    return (a0, a1, a2, a3), (b0, b1, b2, b3)


@compiled()
def _one_by_two(x: Array, w: Array, u: Array) -> tuple[float, float]:
    """Dot products of one row x with w and with u."""
    a = b = zero
    for k in range(w.shape[0]):
        a += x[k] * w[k]
        b += x[k] * u[k]
    return a, b


@compiled()
def _columns(x: Array, weight: Array, first: int, second: int, left: Array, right: Array) -> None:
    """x times rows `first` and `second` of the weight: into left and right, [rows]."""
    rows = x.shape[0]
    m = 0
    while m + 4 <= rows:
        a, b = four_by_two(x[m : m + 4], weight[first], weight[second])
        left[m], left[m + 1], left[m + 2], left[m + 3] = a
        right[m], right[m + 1], right[m + 2], right[m + 3] = b
        m += 4
    while m < rows:
        left[m], right[m] = _one_by_two(x[m], weight[first], weight[second])
        m += 1


@compiled(parallel=True)
def _norm_project(x: Array, norm_weight: Array, eps: float, weight: Array, normed: Array, out: Array) -> None:
    """Of `norm_project`."""
    rows, outputs = out.shape
    norm_rows(x, norm_weight, eps, normed)
    for task in prange((outputs + COLUMNS - 1) // COLUMNS):
        found = np.empty((2, rows), np.float32)
        for n in range(task * COLUMNS, min(outputs, (task + 1) * COLUMNS), 2):
            pair = min(n + 1, outputs - 1)
            _columns(normed, weight, n, pair, found[0], found[1])
            for i in range(rows):
                out[i, n] = found[0, i]
                out[i, pair] = found[1, i]


@compiled(parallel=True)
def _project_add(x: Array, weight: Array, out: Array) -> None:
    """Of `project_add`."""
    rows, outputs = out.shape
    for task in prange((outputs + COLUMNS - 1) // COLUMNS):
        found = np.empty((2, rows), np.float32)
        for n in range(task * COLUMNS, min(outputs, (task + 1) * COLUMNS), 2):
            pair = min(n + 1, outputs - 1)
            _columns(x, weight, n, pair, found[0], found[1])
            for i in range(rows):
                out[i, n] += found[0, i]
                if pair > n:
                    out[i, pair] += found[1, i]


@compiled(parallel=True)
def _norm_swiglu(x: Array, norm_weight: Array, eps: float, weight: Array, normed: Array, out: Array) -> None:
    """Of `norm_swiglu`: a gate and its up are computed together."""
    rows, outputs = out.shape
    norm_rows(x, norm_weight, eps, normed)
    for task in prange((outputs + COLUMNS - 1) // COLUMNS):
        found = np.empty((2, rows), np.float32)
        for n in range(task * COLUMNS, min(outputs, (task + 1) * COLUMNS)):
            _columns(normed, weight, n, outputs + n, found[0], found[1])
            for i in range(rows):
                out[i, n] = silu(found[0, i]) * found[1, i]
