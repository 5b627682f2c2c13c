"""Projections by weights that are held as codes of a byte, against fp64 of what the codes stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bank_cases import normal

pytest.importorskip("numba")

from qwen36_neuron.checkpoint.formats import QuantisedWeight, round_inputs
from qwen36_neuron.ops.numba import panels
from qwen36_neuron.ops.numba.held import Table, rounded_rows, take_rows, write_out
from qwen36_neuron.ops.numba.pairs import norm_project_both
from qwen36_neuron.ops.numba.panels import PANEL, Packed
from qwen36_neuron.ops.numba.projections import FEW, Matrix, Norm, Weight, norm_project, norm_swiglu, project_add
from qwen36_neuron.ops.numba.scalar import array, f32

EPS = 1e-6
FP8 = torch.float8_e4m3fn


def quantised(outputs: int, inputs: int, group: int, dtype: torch.dtype, seed: int = 0) -> QuantisedWeight:
    """Codes of all sizes, scales of both signs, numbers of about one over the root of `inputs`."""
    draw = torch.Generator().manual_seed(seed)
    if dtype == torch.int8:
        codes = torch.randint(-128, 128, (outputs, inputs), generator=draw, dtype=torch.int8)
        unit = 1 / 74
    else:
        codes = (448 * (2 * torch.rand(outputs, inputs, generator=draw) - 1) ** 3).to(FP8)
        unit = 1 / 170
    scales = unit / inputs**0.5 * (0.5 + torch.rand(outputs, -(-inputs // group), generator=draw))
    scales[::3] *= -1
    return QuantisedWeight(codes, scales, (1, group))


def packed(weight: QuantisedWeight, rounds: bool = False) -> Packed:
    held = Packed.of_codes(weight.codes, weight.scales, weight.block[1], rounds)
    assert held is not None
    assert held.data.itemsize == 1
    return held


def exact_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()


@pytest.mark.parametrize("dtype", [torch.int8, FP8])
@pytest.mark.parametrize("rows", [1, 3, 8, 13, FEW, FEW + 1])
@pytest.mark.parametrize(
    ("inputs", "outputs", "group"), [(256, 300, 128), (768, 31, 768), (192, 70, 128), (100, 2, 100)]
)
def test_projections(rows: int, inputs: int, outputs: int, group: int, dtype: torch.dtype) -> None:
    """Whole and ragged groups, channels, odd outputs, rows on both sides of what panels do.

    Tolerance: 5e-7 of the sum of magnitudes, eight roundings of fp32: sums are of 32 products, then of those sums.
    """
    weight = quantised(outputs, inputs, group, dtype)
    x, factors, before = normal(rows, inputs), 1 + 0.2 * normal(inputs, seed=2), normal(rows, outputs, seed=3)
    exact, norm = weight.dequantise().double(), Norm(factors.numpy(), f32(EPS))
    normed, out = Matrix.empty(rows, inputs), Matrix.empty(rows, outputs)
    held = Weight(packed(weight))
    norm_project(Matrix.of(x), norm, held, normed, out)
    inner = exact_norm(x, factors)
    expected, limit = inner @ exact.t(), 5e-7 * (inner.abs() @ exact.abs().t())
    assert ((out.tensor - expected).abs() <= limit).all()
    summed = Matrix.of(before.clone())
    project_add(Matrix.of(x), held, summed)
    total, bound = before.double() + x.double() @ exact.t(), 5e-7 * (before.abs() + x.double().abs() @ exact.abs().t())
    assert ((summed.tensor - total).abs() <= bound).all()
    gates = QuantisedWeight(weight.codes.repeat(2, 1), weight.scales.repeat(2, 1), weight.block)
    norm_swiglu(Matrix.of(x), norm, Weight(packed(gates)), normed, out)
    # The derivative of silu(a) a is at most 1.1 (1 + 2 |a|).
    assert ((out.tensor - F.silu(expected) * expected).abs() <= 1.1 * (1 + 2 * expected.abs()) * limit + 1e-7).all()


@pytest.mark.parametrize("dtype", [torch.int8, FP8])
def test_a_row_gives_the_same_bits_whatever_is_beside_it(dtype: torch.dtype) -> None:
    weight, x = Weight(packed(quantised(300, 192, 64, dtype))), normal(FEW, 192, seed=1)
    every = Matrix.of(torch.zeros(FEW, 300))
    project_add(Matrix.of(x), weight, every)
    for rows in range(1, 20):
        alone = Matrix.of(torch.zeros(rows, 300))
        project_add(Matrix.of(x[FEW - rows :].contiguous()), weight, alone)
        assert torch.equal(alone.tensor, every.tensor[FEW - rows :])


@pytest.mark.parametrize("dtype", [torch.int8, FP8])
def test_every_code_is_written_out_and_looked_up_as_it_is(dtype: torch.dtype) -> None:
    """Exactly, the smallest numbers of E4M3 and both zeros among them."""
    bytes_ = torch.arange(256, dtype=torch.uint8).repeat(3, 1)
    if dtype == FP8:
        bytes_[(bytes_ & 0x7F) == 0x7F] = 0
    weight = QuantisedWeight(bytes_.view(dtype), torch.tensor([[1.0], [-0.5], [0.0117]]), (1, 256))
    out = torch.empty(PANEL, 256)
    write_out(packed(weight), 0, array(out))
    assert torch.equal(out[:3], weight.dequantise())
    table = Table.of_codes(weight.codes, weight.scales, weight.block)
    assert table is not None
    rows = torch.empty(4, 256)
    take_rows(table, np.array([2, 0, 1, 2]), array(rows))
    assert torch.equal(rows, weight.dequantise()[[2, 0, 1, 2]])


def test_rows_of_blocks_and_of_bfloat16() -> None:
    weight = quantised(300, 320, 128, FP8)
    blocks = QuantisedWeight(weight.codes, weight.scales[:3], (128, 128))
    table = Table.of_codes(blocks.codes, blocks.scales, blocks.block)
    assert table is not None
    rows = torch.empty(3, 320)
    take_rows(table, np.array([299, 127, 128]), array(rows))
    assert torch.equal(rows, blocks.dequantise()[[299, 127, 128]])
    plain = normal(7, 33).to(torch.bfloat16)
    held = Table.of(plain)
    assert held.data.itemsize == 2
    found = torch.empty(1, 33)
    take_rows(held, np.array([6]), array(found))
    assert torch.equal(found[0], plain[6].float())


@pytest.mark.parametrize("rows", [1, 5, FEW + 3])
@pytest.mark.parametrize("rounds", [False, True])
def test_two_weights_of_one_input(rows: int, rounds: bool) -> None:
    """Codes beside bfloat16; inputs are rounded for the codes alone."""
    x, factors = normal(rows, 256), 1 + 0.2 * normal(256, seed=2)
    first, second = quantised(70, 256, 128, torch.int8), (normal(7, 256, seed=5) / 16).to(torch.bfloat16)
    normed, out = Matrix.empty(rows, 256), Matrix.empty(rows, 77)
    pair = Weight(packed(first, rounds)), Weight(Packed.of(second))
    norm_project_both(Matrix.of(x), Norm(factors.numpy(), f32(EPS)), *pair, normed, out)
    inputs = round_inputs(normed.tensor) if rounds else normed.tensor
    expected = torch.cat(
        (inputs.double() @ first.dequantise().double().t(), normed.tensor.double() @ second.double().t()), 1
    )
    assert (out.tensor - expected).abs().max() <= 4e-6
    assert torch.equal(torch.from_numpy(rounded_rows(normed.array)), round_inputs(normed.tensor))


def test_what_cannot_be_held_as_codes_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = quantised(8, 80, 20, torch.int8)
    assert Packed.of_codes(weight.codes, weight.scales, 20) is None  # a block of inputs would be of two groups
    monkeypatch.setattr(panels, "HAS_HALVES", False)
    eight = quantised(8, 80, 80, FP8)
    assert Packed.of_codes(eight.codes, eight.scales, 80) is None


def test_the_last_outputs_alone() -> None:
    weight = quantised(PANEL * 3 + 5, 96, 32, torch.int8)
    x, out = normal(2, 96), torch.zeros(2, PANEL + 5)
    part = packed(weight).rows(2 * PANEL)
    project_add(Matrix.of(x), Weight(part), Matrix.of(out))
    assert (out - x.double() @ weight.dequantise().double().t()[:, 2 * PANEL :]).abs().max() <= 4e-6
