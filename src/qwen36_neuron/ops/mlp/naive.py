"""The feed-forward block's activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def swiglu(both: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of [..., 2 n] with gates first: [..., n]."""
    half = both.shape[-1] // 2
    return F.silu(both[..., :half]).mul_(both[..., half:])
