"""Causal convolution against torch's own, whole and cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qwen36_neuron.ops.causal_conv1d import causal_conv1d, causal_conv1d_step, conv_window


def reference(x: torch.Tensor, window: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    joined = torch.cat((window, x), dim=1).transpose(1, 2)
    return F.silu(F.conv1d(joined, weight.unsqueeze(1), groups=weight.shape[0])).transpose(1, 2)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 64])
@pytest.mark.parametrize("kernel", [2, 4])
def test_equals_torch_with_a_carried_window(tokens: int, kernel: int) -> None:
    x, window, weight = torch.randn(2, tokens, 24), torch.randn(2, kernel - 1, 24), torch.randn(24, kernel)
    torch.testing.assert_close(causal_conv1d(x, window, weight), reference(x, window, weight), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 9])
def test_a_cut_carries_the_window(cut: int) -> None:
    x, window, weight = torch.randn(1, 10, 8), torch.randn(1, 3, 8), torch.randn(8, 4)
    whole = causal_conv1d(x, window, weight)
    first = causal_conv1d(x[:, :cut], window, weight)
    middle = conv_window(x[:, :cut], window, [cut])
    rest = causal_conv1d(x[:, cut:], middle, weight)
    torch.testing.assert_close(torch.cat((first, rest), dim=1), whole, rtol=1e-6, atol=1e-6)


def test_the_window_ends_at_the_last_real_token_of_each_row() -> None:
    x, window = torch.randn(4, 6, 8), torch.randn(4, 3, 8)
    joined = torch.cat((window, x), dim=1)
    lengths = [1, 2, 3, 6]
    expected = torch.stack([joined[row, n : n + 3] for row, n in enumerate(lengths)])
    assert torch.equal(conv_window(x, window, lengths), expected)


@pytest.mark.parametrize("kernel", [2, 4])
def test_single_steps_equal_the_whole(kernel: int) -> None:
    x, window, weight = torch.randn(3, 6, 8), torch.randn(3, kernel - 1, 8), torch.randn(8, kernel)
    running, parts = window, []
    for t in range(6):
        y, running = causal_conv1d_step(x[:, t : t + 1], running, weight)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), causal_conv1d(x, window, weight), rtol=1e-5, atol=1e-6)
    assert torch.equal(running, conv_window(x, window, [6, 6, 6]))
