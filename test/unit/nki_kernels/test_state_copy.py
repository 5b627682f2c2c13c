"""States move by index, and only those named."""

import pytest
import torch

from nki_kernels.interpreter import profile
from nki_kernels.state_copy import state_copy
from nki_kernels.state_copy_torch import state_copy_torch


@pytest.mark.parametrize("form", [state_copy, state_copy[2], state_copy_torch], ids=["kernel", "two", "twin"])
@pytest.mark.parametrize("shape", [(2, 128, 128), (3, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pairs_move_and_those_without_a_place_do_not(form, shape, dtype):
    src, dst = torch.randn(4, *shape).to(dtype), torch.randn(7, *shape).to(dtype)
    want = dst.clone()
    want[5], want[0] = src[3], src[1]
    pairs = torch.tensor([[3, 1, 2, 0], [5, 0, 7, 9]], dtype=torch.int32)
    returned = form(dst, src, pairs)
    assert torch.equal(dst, want)
    assert torch.equal(returned, want)


def test_traffic_is_that_of_the_states_moved():
    src, dst = torch.randn(4, 2, 128, 128), torch.randn(50, 2, 128, 128)
    _, report = profile(state_copy, dst, src, torch.tensor([[3, 0], [5, 99]], dtype=torch.int32))
    assert report.hbm_write == src[0].numel() * 4


def test_a_copy_by_index_is_priced_after_its_index():
    src, dst = torch.randn(2, 2, 128, 128), torch.randn(2, 2, 128, 128)
    _, report = profile(state_copy, dst, src, torch.tensor([[1], [0]], dtype=torch.int32))
    row, place, load, store = report.nodes
    assert load.start >= row.finish
    assert store.start >= max(place.finish, load.finish)
