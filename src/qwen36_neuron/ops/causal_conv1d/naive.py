"""The depthwise causal convolution with SiLU by its definition."""

from __future__ import annotations

import torch


def naive_causal_conv1d(x: torch.Tensor, window: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """silu(sum_j weight[:, j] * x[t - K + 1 + j]), the past of the first token being the window.

    In the type of its inputs: with fp64 the oracle of all other forms.

    Args:
        x: [batch, tokens, channels].
        window: [batch, K - 1, channels], the inputs before the first token, oldest first; zeros at position 0.
        weight: [channels, K], the last column for the token itself.
    Returns:
        [batch, tokens, channels].
    """
    joined, tokens = torch.cat((window, x), dim=1), x.shape[1]
    y = torch.stack([joined[:, j : j + tokens] * weight[:, j] for j in range(weight.shape[1])]).sum(0)
    return y * torch.sigmoid(y)
