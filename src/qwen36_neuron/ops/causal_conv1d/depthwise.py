"""The depthwise causal convolution with SiLU for many tokens on a CPU, by the library's depthwise kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def causal_conv1d_cpu(joined: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`causal_conv1d` of inputs that follow their window in one buffer, as one depthwise convolution.

    Channels lie next to each other, which is the layout that oneDNN's depthwise kernel wants ("channels last").

    Args:
        joined: [batch, K - 1 + tokens, channels], contiguous; the window after n tokens is joined[:, n : n + K - 1].
        weight: [channels, K].
    Returns:
        [batch, tokens, channels], contiguous.
    """
    channels, kernel = weight.shape
    image = joined.transpose(1, 2).unsqueeze(2)  # [batch, channels, 1, K - 1 + tokens]
    y = F.conv2d(image, weight.view(channels, 1, 1, kernel), groups=channels)
    return F.silu(y, inplace=True).squeeze(2).transpose(1, 2)
