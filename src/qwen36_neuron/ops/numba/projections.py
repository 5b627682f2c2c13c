"""Projections of a few rows, each fused with what comes before or after it.

A weight is read once here, whatever the number of rows, from its panels. Matrix libraries come into their own with more
rows, see `FEW`, and read it in the layout that a checkpoint has it in, [out, in].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import prange

from ..dense import linear
from . import held
from .held import rounded_rows
from .panels import PANEL, Packed, times_panel
from .rows import activate, normalise
from .scalar import Array, array, compiled, silu
from .vectors import norm_rows

FEW = 64
"""Rows up to which these are at least as fast as a matrix library's product."""


WRITTEN = 1 << 22
"""Numbers of a weight that are written out at once for the matrix library: 16 MiB."""


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
    """A weight as the fused operations read it, in panels, and as the matrix library does.

    Attributes:
        tensor: fp32 [out, in]; None where panels alone are held, which saves memory: products of many rows then have
            them written out, part by part.
    """

    packed: Packed
    tensor: torch.Tensor | None = None

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Weight:
        return cls(Packed.of(tensor), tensor)

    @property
    def outputs(self) -> int:
        return self.packed.outputs

    @property
    def inputs(self) -> int:
        return self.packed.data.shape[1]

    def product(self, x: torch.Tensor, first: int = 0, last: int | None = None) -> torch.Tensor:
        """x W^T of fp32 x [..., in], of outputs first .. last, for many rows."""
        last = self.outputs if last is None else last
        if self.tensor is not None:
            return linear(x, self.tensor[first:last])
        rows = x.reshape(-1, self.inputs)
        if self.packed.rounds:
            rows = torch.from_numpy(rounded_rows(array(rows.contiguous())))
        step = max(PANEL, WRITTEN // self.inputs // PANEL * PANEL)
        parts = []
        for start in range(first // PANEL * PANEL, last, step):
            stop = min(start + step, last)
            dense = torch.empty(-(-(stop - start) // PANEL) * PANEL, self.inputs)
            held.write_out(self.packed, start // PANEL, array(dense))
            parts.append(linear(rows, dense[max(first - start, 0) : stop - start]))
        return torch.cat(parts, 1).view(*x.shape[:-1], last - first)


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
    if weight.tensor is None:
        out.tensor.copy_(weight.product(normed.tensor))
    else:
        torch.mm(normed.tensor, weight.tensor.t(), out=out.tensor)


def project_add(x: Matrix, weight: Weight, out: Matrix) -> None:
    """out += x W^T, with x [rows, n], weight [m, n] and out [rows, m]."""
    if len(x.array) <= FEW:
        project_add_few(x.array, weight.packed, out.array)
        return
    if weight.tensor is None:
        out.tensor.add_(weight.product(x.tensor))
    else:
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
    both = weight.product(normed.tensor) if weight.tensor is None else torch.mm(normed.tensor, weight.tensor.t())
    activate(array(both), out.array)


@compiled(parallel=True)
def norm_project_few(x: Array, norm: Norm, weight: Packed, normed: Array, out: Array) -> None:
    """`norm_project`, whatever the number of rows."""
    norm_rows(x, norm.weight, norm.eps, normed)
    rows = out.shape[0]
    rounded = rounded_rows(normed) if weight.rounds else normed
    for panel in prange(weight.data.shape[0]):
        found, first = np.empty((rows, PANEL), np.float32), panel * PANEL
        times_panel(rounded, weight, panel, found)
        for i in range(rows):
            for j in range(min(PANEL, weight.outputs - first)):
                out[i, first + j] = found[i, j]


@compiled(parallel=True)
def project_add_few(x: Array, weight: Packed, out: Array) -> None:
    """`project_add`, likewise."""
    rows = out.shape[0]
    rounded = rounded_rows(x) if weight.rounds else x
    for panel in prange(weight.data.shape[0]):
        found, first = np.empty((rows, PANEL), np.float32), panel * PANEL
        times_panel(rounded, weight, panel, found)
        for i in range(rows):
            for j in range(min(PANEL, weight.outputs - first)):
                out[i, first + j] += found[i, j]


@compiled(parallel=True)
def norm_swiglu_few(x: Array, norm: Norm, weight: Packed, normed: Array, out: Array) -> None:
    """`norm_swiglu`, likewise: gates and what they belong to may be in parts of two panels."""
    rows, outputs = out.shape
    norm_rows(x, norm.weight, norm.eps, normed)
    rounded = rounded_rows(normed) if weight.rounds else normed
    for panel in prange((outputs + PANEL - 1) // PANEL):
        gates, ups = np.empty((rows, PANEL), np.float32), np.empty((rows, 2 * PANEL), np.float32)
        first = panel * PANEL
        times_panel(rounded, weight, panel, gates)
        lead = (outputs + first) % PANEL
        part = np.empty((rows, PANEL), np.float32)
        for half in range(2 if lead else 1):
            other = (outputs + first) // PANEL + half
            if other < weight.data.shape[0]:
                times_panel(rounded, weight, other, part)
                for i in range(rows):
                    for j in range(PANEL):
                        ups[i, half * PANEL + j] = part[i, j]
        for i in range(rows):
            for j in range(min(PANEL, outputs - first)):
                out[i, first + j] = silu(gates[i, j]) * ups[i, lead + j]
