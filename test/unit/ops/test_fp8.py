"""FP8 numbers of keys and values: torch's and the compiled form's, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compiled_forms import needs_numba

from qwen36_neuron.ops.fp8 import LARGEST, STORAGE, replace_rows, replace_rows_in_place, rounded

ONE = torch.ones(())


def hostile() -> torch.Tensor:
    """Every number there is, what lies between two of them and beside that, numbers beyond, and numbers of all bits."""
    every = torch.arange(256, dtype=torch.uint8).view(STORAGE).float()
    every = every[every.abs() <= LARGEST].sort().values
    middle = (every[1:] + every[:-1]) / 2
    beside = [torch.nextafter(middle, torch.full_like(middle, end)) for end in (1e9, -1e9)]
    beyond = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 240.1, 247.9, 248.0, 256.0, 448.0, 1e38, -1e38])
    bits = torch.randint(-(2**31), 2**31 - 1, (200_000,), generator=torch.Generator().manual_seed(0)).int()
    anything = bits.view(torch.float32)
    return torch.cat((every, middle, *beside, beyond, anything[anything.isfinite()]))


def nearest(x: torch.Tensor) -> torch.Tensor:
    """By looking at all numbers, the even code of two that are as near."""
    codes = torch.arange(256, dtype=torch.uint8)
    every = codes.view(STORAGE).double()
    codes, every = codes[every.abs() <= LARGEST], every[every.abs() <= LARGEST]
    distance = (x.double().clamp(-1e3, 1e3)[:, None] - every).abs()
    near = distance == distance.amin(1, keepdim=True)
    return every[(near * (2 - codes.int() % 2)).argmax(1)].float()


def test_rounding_is_to_the_nearest_number_that_a_trn2_has() -> None:
    x = hostile()[:4000]
    found = rounded(x, ONE)
    assert torch.equal(found, nearest(x))
    assert found.abs().max() == LARGEST
    assert torch.equal(rounded(x, torch.tensor(0.25)), nearest(x * 0.25))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounded_numbers_are_held_exactly(dtype: torch.dtype) -> None:
    found = rounded(hostile().to(dtype), ONE)
    assert found.dtype == dtype
    assert torch.equal(found, found.to(STORAGE).to(dtype))
    codes = found.to(STORAGE).view(torch.uint8)
    assert not bool(((codes & 0x78) == 0x78).any()), "exponent field 15, which a Trn2 reads as infinity"


@needs_numba
def test_compiled_codes_are_those_of_torch() -> None:
    from qwen36_neuron.ops.attention.numba_pages import _encode

    x = hostile()
    for rate in (1.0, 0.37, 8.0):
        found = np.empty(len(x), np.uint8)
        _encode(x.numpy(), np.float32(rate), found)
        assert np.array_equal(found, rounded(x, torch.tensor(rate)).to(STORAGE).view(torch.uint8).numpy())


def test_rows_are_replaced_where_torch_has_no_operation_for_it() -> None:
    memory, rows = torch.zeros(5, 2, 3).to(STORAGE), torch.full((2, 2, 3), 1.5)
    after = replace_rows(memory, torch.tensor([3, 1]), rows)
    assert after.dtype == STORAGE
    assert after.float().sum((1, 2)).tolist() == [0, 9, 0, 9, 0]
    assert not memory.float().any()
    replace_rows_in_place(memory, torch.tensor([3, 1]), rows)
    assert torch.equal(memory.view(torch.uint8), after.view(torch.uint8))
