"""Compiled projections of a few rows, fused with norms and activation, against fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from bank_cases import normal

pytest.importorskip("numba")

from qwen36_neuron.ops.numba.projections import Matrix, Norm, norm_project, norm_swiglu, project_add
from qwen36_neuron.ops.numba.scalar import f32

EPS = 1e-6


def exact_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 17])
@pytest.mark.parametrize(("inputs", "outputs"), [(256, 2060), (96, 31), (768, 256), (33, 2), (64, 1)])
def test_projections_of_any_number_of_rows(rows: int, inputs: int, outputs: int) -> None:
    """Rows on both sides of what is done here, odd outputs, a last task with less to do."""
    x, weight = normal(rows, inputs), normal(outputs, inputs, seed=1) / inputs**0.5
    factors, before = 1 + 0.2 * normal(inputs, seed=2), normal(rows, outputs, seed=3)
    norm = Norm(factors.numpy(), f32(EPS))
    normed, out = Matrix.empty(rows, inputs), Matrix.empty(rows, outputs)
    norm_project(Matrix.of(x), norm, Matrix.of(weight), normed, out)
    exact = exact_norm(x, factors) @ weight.double().t()
    assert (out.tensor - exact).abs().max() <= 4e-6
    summed = Matrix.of(before.clone())
    project_add(Matrix.of(x), Matrix.of(weight), summed)
    assert (summed.tensor - (before.double() + x.double() @ weight.double().t())).abs().max() <= 4e-6
    both = Matrix.of(torch.cat((weight, weight.flip(0) * 0.5)))
    norm_swiglu(Matrix.of(x), norm, both, normed, out)
    assert (out.tensor - F.silu(exact) * exact.flip(1) * 0.5).abs().max() <= 8e-6
