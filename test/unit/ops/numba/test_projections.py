"""Compiled projections of a few rows, fused with norms and activation, against fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from bank_cases import normal

pytest.importorskip("numba")

from qwen36_neuron.ops.numba.panels import PANEL, Packed
from qwen36_neuron.ops.numba.projections import FEW, Matrix, Norm, Weight, norm_project, norm_swiglu, project_add
from qwen36_neuron.ops.numba.scalar import f32

EPS = 1e-6


def exact_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, FEW, FEW + 1])
@pytest.mark.parametrize(("inputs", "outputs"), [(256, 2060), (96, 31), (768, 256), (33, 2), (64, 1)])
def test_projections_of_any_number_of_rows(rows: int, inputs: int, outputs: int) -> None:
    """Rows on both sides of what is done here, odd outputs, a last task with less to do."""
    x, weight = normal(rows, inputs), normal(outputs, inputs, seed=1) / inputs**0.5
    factors, before = 1 + 0.2 * normal(inputs, seed=2), normal(rows, outputs, seed=3)
    norm = Norm(factors.numpy(), f32(EPS))
    normed, out = Matrix.empty(rows, inputs), Matrix.empty(rows, outputs)
    norm_project(Matrix.of(x), norm, Weight.of(weight), normed, out)
    exact = exact_norm(x, factors) @ weight.double().t()
    assert (out.tensor - exact).abs().max() <= 4e-6
    summed = Matrix.of(before.clone())
    project_add(Matrix.of(x), Weight.of(weight), summed)
    assert (summed.tensor - (before.double() + x.double() @ weight.double().t())).abs().max() <= 4e-6
    both = Weight.of(torch.cat((weight, weight.flip(0) * 0.5)))
    norm_swiglu(Matrix.of(x), norm, both, normed, out)
    assert (out.tensor - F.silu(exact) * exact.flip(1) * 0.5).abs().max() <= 8e-6


@pytest.mark.parametrize(("inputs", "outputs"), [(256, 2060), (33, 70)])
def test_a_row_gives_the_same_bits_whatever_is_beside_it(inputs: int, outputs: int) -> None:
    """A token is chosen by numbers that do not depend on the batch, nor on the drafts of its row."""
    weight, x = Weight.of(normal(outputs, inputs)), normal(FEW, inputs, seed=1)
    every = Matrix.of(torch.zeros(FEW, outputs))
    project_add(Matrix.of(x), weight, every)
    for rows in range(1, 20):
        alone = Matrix.of(torch.zeros(rows, outputs))
        project_add(Matrix.of(x[FEW - rows :].contiguous()), weight, alone)
        assert torch.equal(alone.tensor, every.tensor[FEW - rows :])


@pytest.mark.parametrize("outputs", [1, PANEL - 1, PANEL, PANEL + 1])
def test_weights_that_are_bfloat16_are_held_in_half_the_bytes_and_lose_nothing(outputs: int) -> None:
    weight, x = normal(outputs, 96), Matrix.of(normal(5, 96, seed=1))
    narrow = weight.to(torch.bfloat16).float()
    packed = Packed.of(narrow)
    assert packed.data.itemsize == 2
    assert Packed.of(weight).data.itemsize == 4
    assert packed.data.shape == (-(-outputs // PANEL), 96, PANEL)
    found = Matrix.of(torch.zeros(5, outputs))
    project_add(x, Weight(packed, narrow), found)
    assert (found.tensor - x.tensor.double() @ narrow.double().t()).abs().max() <= 2e-5
    one_less = torch.nextafter(narrow, torch.zeros(()))
    assert Packed.of(one_less).data.itemsize == 4
