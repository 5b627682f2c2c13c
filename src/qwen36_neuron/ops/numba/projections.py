"""Projections of a few rows, each fused with what comes before or after it.

A weight is read once here, whatever the number of rows, from its panels. Matrix libraries come into their own with more
rows, see `FEW`, and read it in the layout that a checkpoint has it in, [out, in].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import prange

from .panels import PANEL, Packed, times_panel
from .rows import activate, normalise
from .scalar import Array, array, compiled, silu
from .vectors import norm_rows

FEW = 64
"""Rows up to which these are at least as fast as a matrix library's product."""


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


class Weight(NamedTuple):
    """A weight as the matrix library and as the fused operations read it: fp32 [out, in], and in panels."""

    tensor: torch.Tensor
    packed: Packed

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Weight:
        return cls(tensor, Packed.of(tensor))


class Norm(NamedTuple):
    """An RMSNorm: its factors [n] and its epsilon, an fp32 number."""

    weight: Array
    eps: float


def norm_project(x: Matrix, norm: Norm, weight: Weight, normed: Matrix, out: Matrix) -> None:
    """out = norm(x) W^T.

    Args:
        x: [rows, n]; weight: [m, n]; normed: [rows, n], overwritten; out: [rows, m].
    """
    if len(x.array) <= FEW:
        norm_project_few(x.array, norm, weight.packed, normed.array, out.array)
        return
    normalise(x.array, *norm, normed.array)
    torch.mm(normed.tensor, weight.tensor.t(), out=out.tensor)


def project_add(x: Matrix, weight: Weight, out: Matrix) -> None:
    """out += x W^T, with x [rows, n], weight [m, n] and out [rows, m]."""
    if len(x.array) <= FEW:
        project_add_few(x.array, weight.packed, out.array)
        return
    torch.addmm(out.tensor, x.tensor, weight.tensor.t(), out=out.tensor)


def norm_swiglu(x: Matrix, norm: Norm, weight: Weight, normed: Matrix, out: Matrix) -> None:
    """out = silu(gate) * up of norm(x) W^T.

    Args:
        x: [rows, n]; weight: [2 m, n], gates first; normed: [rows, n], overwritten; out: [rows, m].
    """
    if len(x.array) <= FEW:
        norm_swiglu_few(x.array, norm, weight.packed, normed.array, out.array)
        return
    normalise(x.array, *norm, normed.array)
    activate(array(torch.mm(normed.tensor, weight.tensor.t())), out.array)


@compiled(parallel=True)
def norm_project_few(x: Array, norm: Norm, weight: Packed, normed: Array, out: Array) -> None:
    """`norm_project`, whatever the number of rows."""
    norm_rows(x, norm.weight, norm.eps, normed)
    rows = out.shape[0]
    for panel in prange(weight.data.shape[0]):
        found, first = np.empty((rows, PANEL), np.float32), panel * PANEL
        times_panel(normed, weight.data[panel], found)
        for i in range(rows):
            for j in range(min(PANEL, weight.outputs - first)):
                out[i, first + j] = found[i, j]


@compiled(parallel=True)
def project_add_few(x: Array, weight: Packed, out: Array) -> None:
    """`project_add`, likewise."""
    rows = out.shape[0]
    for panel in prange(weight.data.shape[0]):
        found, first = np.empty((rows, PANEL), np.float32), panel * PANEL
        times_panel(x, weight.data[panel], found)
        for i in range(rows):
            for j in range(min(PANEL, weight.outputs - first)):
                out[i, first + j] += found[i, j]


@compiled(parallel=True)
def norm_swiglu_few(x: Array, norm: Norm, weight: Packed, normed: Array, out: Array) -> None:
    """`norm_swiglu`, likewise: gates and what they belong to may be in parts of two panels."""
    rows, outputs = out.shape
    norm_rows(x, norm.weight, norm.eps, normed)
    for panel in prange((outputs + PANEL - 1) // PANEL):
        gates, ups = np.empty((rows, PANEL), np.float32), np.empty((rows, 2 * PANEL), np.float32)
        first = panel * PANEL
        times_panel(normed, weight.data[panel], gates)
        lead = (outputs + first) % PANEL
        part = np.empty((rows, PANEL), np.float32)
        for half in range(2 if lead else 1):
            other = (outputs + first) // PANEL + half
            if other < weight.data.shape[0]:
                times_panel(normed, weight.data[other], part)
                for i in range(rows):
                    for j in range(PANEL):
                        ups[i, half * PANEL + j] = part[i, j]
        for i in range(rows):
            for j in range(min(PANEL, outputs - first)):
                out[i, first + j] = silu(gates[i, j]) * ups[i, lead + j]
