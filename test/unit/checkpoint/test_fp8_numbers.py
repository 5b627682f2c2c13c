"""The FP8 number format against ml_dtypes, code by code, and what quantising and halving do to values."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from qwen36_neuron.checkpoint.fp8 import MAX, STORED, Error, block_shape, dequantise, halve, quantise_channels

CODES = np.arange(256, dtype=np.uint8)
TRN2 = CODES.view(ml_dtypes.float8_e4m3).astype(np.float32)
FILE = CODES.view(ml_dtypes.float8_e4m3fn).astype(np.float32)


def codes(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(torch.uint8).numpy()


def on_trn2(payload: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(codes(payload).view(ml_dtypes.float8_e4m3).astype(np.float32))


def test_both_flavours_read_a_code_alike_exactly_where_the_exponent_field_is_not_15() -> None:
    assert np.array_equal(TRN2 == FILE, (CODES >> 3 & 15) != 15)


def test_every_value_up_to_240_gets_the_code_that_trn2_would_round_it_to() -> None:
    grid = torch.from_numpy(np.sort(TRN2[np.isfinite(TRN2)]))
    between = (grid[1:] + grid[:-1]) / 2
    values = torch.cat(
        (grid, between, torch.nextafter(between, torch.tensor(torch.inf)), torch.linspace(-MAX, MAX, 9973))
    )
    matrix = torch.cat((values, torch.tensor([MAX]))).view(1, -1)  # the scale is 1
    payload, scale = quantise_channels(matrix)
    assert scale.item() == 1.0
    assert np.array_equal(codes(payload)[0], matrix[0].numpy().astype(ml_dtypes.float8_e4m3).view(np.uint8))


@pytest.mark.parametrize("size", [1e-42, 1e-30, 3e-3, 1.0, 7e8, 3e38])
@pytest.mark.parametrize("columns", [1, 63, 64, 65])
def test_a_channel_keeps_its_largest_value_and_its_errors_small_at_any_size(size: float, columns: int) -> None:
    torch.manual_seed(columns)
    weight = (torch.rand(40, columns) * 2 - 1) * size
    payload, scale = quantise_channels(weight)
    assert scale.shape == (40, 1)
    assert scale.dtype == torch.float32
    assert torch.equal(on_trn2(payload), payload.float())
    error = (on_trn2(payload).double() * scale.double() - weight.double()).abs().amax(1)
    assert (error <= weight.abs().amax(1).double() * (8 / MAX) * 1.0001 + 1e-38).all()


def test_channels_do_not_share_a_scale() -> None:
    weight = torch.randn(8, 64) * torch.logspace(-6, 6, 8).view(-1, 1)
    payload, scale = quantise_channels(weight)
    relative = (dequantise(payload, scale, (1, 64)) - weight).norm(dim=1) / weight.norm(dim=1)
    assert relative.max() < 0.04


def test_a_channel_of_zeros_stays_zero() -> None:
    payload, scale = quantise_channels(torch.tensor([[0.0, -0.0], [1.0, 2.0]]))
    assert scale[0].item() == 1.0
    assert torch.equal(payload[0].float(), torch.zeros(2))


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_a_value_that_is_no_number_is_refused(bad: float) -> None:
    weight = torch.ones(3, 4)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="infinite or not numbers"):
        quantise_channels(weight)


def test_halving_is_exact_for_all_codes_but_the_sixteen_smallest_odd_ones() -> None:
    numbers = torch.from_numpy(CODES).view(STORED)[~np.isnan(FILE)]
    halves = on_trn2(halve(numbers))
    wrong = numbers.float()[halves * 2 != numbers.float()]
    expected = torch.arange(1, 16, 2) / 512
    assert torch.equal(wrong.sort().values, torch.cat((-expected.flip(0), expected)))
    assert halves.abs().max() == 224
    assert (halves * 2 - numbers.float()).abs().max() <= 1 / 512


def test_a_payload_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not numbers"):
        halve(torch.tensor([0x7F], dtype=torch.uint8).view(STORED))


@pytest.mark.parametrize("shape", [(128, 128), (129, 127), (256, 300), (64, 384)])
def test_blocks_are_128_by_128_also_at_the_edges(shape: tuple[int, int]) -> None:
    rows, columns = shape
    payload = torch.ones(shape).to(STORED)
    scale = torch.rand(-(-rows // 128), -(-columns // 128))
    assert block_shape(shape, tuple(scale.shape)) == (128, 128)
    assert block_shape(shape, (rows, 1)) == (1, columns)
    assert block_shape(shape, (rows, 2)) is None
    full = dequantise(payload, scale)
    for row, column in ((0, 0), (rows - 1, 0), (0, columns - 1), (rows - 1, columns - 1), (rows // 2, columns // 2)):
        assert full[row, column] == scale[row // 128, column // 128]


def test_the_error_report_against_its_definition() -> None:
    source, stored = torch.tensor([[1.0, -2.0], [0.5, 0.0]]), torch.tensor([[1.25, -2.0], [0.5, 0.25]])
    error = Error()
    for row in range(2):
        error.add(source[row : row + 1], stored[row : row + 1])
    assert (error.values, error.inexact) == (4, 2)
    assert error.sqnr_db == pytest.approx(10 * np.log10(5.25 / 0.125))
    assert error.mean_relative == pytest.approx(0.5 / 3.5)
    assert error.worst == pytest.approx(0.5)
