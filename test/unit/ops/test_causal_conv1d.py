"""Causal convolution against torch's own, whole and cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qwen36_neuron.ops.causal_conv1d import causal_conv1d, causal_conv1d_cpu, causal_conv1d_step


def reference(x: torch.Tensor, window: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    joined = torch.cat((window, x), dim=1).transpose(1, 2)
    return F.silu(F.conv1d(joined, weight.unsqueeze(1), groups=weight.shape[0])).transpose(1, 2)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 64])
@pytest.mark.parametrize("kernel", [2, 4])
def test_equals_torch_with_a_carried_window(tokens: int, kernel: int) -> None:
    x, window, weight = torch.randn(2, tokens, 24), torch.randn(2, kernel - 1, 24), torch.randn(24, kernel)
    expected = reference(x, window, weight)
    torch.testing.assert_close(causal_conv1d(x, window, weight), expected, rtol=1e-5, atol=1e-6)
    joined = torch.cat((window, x), dim=1)
    torch.testing.assert_close(causal_conv1d_cpu(joined, weight), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 9])
def test_a_cut_carries_the_window(cut: int) -> None:
    joined, weight = torch.randn(1, 3 + 10, 8), torch.randn(8, 4)
    whole = causal_conv1d_cpu(joined, weight)
    parts = causal_conv1d_cpu(joined[:, : 3 + cut], weight), causal_conv1d_cpu(joined[:, cut:], weight)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernel", [2, 4])
def test_single_steps_equal_the_whole(kernel: int) -> None:
    x, window, weight = torch.randn(3, 6, 8), torch.randn(3, kernel - 1, 8), torch.randn(8, kernel)
    running, parts = window, []
    for t in range(6):
        y, running = causal_conv1d_step(x[:, t : t + 1], running, weight)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), causal_conv1d(x, window, weight), rtol=1e-5, atol=1e-6)
    assert torch.equal(running, torch.cat((window, x), dim=1)[:, 6:])
