"""The depthwise causal convolution with SiLU for one token a sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def causal_conv1d_step(
    x: torch.Tensor, window: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row: x [batch, 1, channels], window and weight as in `causal_conv1d`.

    Returns:
        (y [batch, 1, channels], the next window [batch, K - 1, channels]).
    """
    seen = torch.cat((window, x), dim=1)
    return F.silu((seen * weight.t()).sum(1, keepdim=True), inplace=True), seen[:, 1:]
