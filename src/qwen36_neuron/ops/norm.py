"""Root-mean-square normalisation, plain and gated. Statistics are fp32 whatever the input type."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def _normalised(x: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps), fp32. Spelled out: torch's own form runs as a dozen small operations on CPU."""
    return x * x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    Args:
        x: [..., n], any float type.
        weight: [n] fp32, the full factor: checkpoints store it minus one and the loader adds the one in fp32.
    Returns:
        [..., n] of x's type.
    """
    return _normalised(x.float(), eps).mul_(weight).to(x.dtype)


def gated_rms_norm(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """rms_norm(x) * weight * silu(gate): normalised before it is gated.

    Args:
        x: [..., n] fp32, the output of the delta rule.
        gate: [..., n], any float type; the result has this type.
        weight: [n] of gate's type, stored as the full factor (not minus one).
    """
    normed = _normalised(x, eps).to(gate.dtype).mul_(weight)
    return (normed * F.silu(gate.float())).to(gate.dtype)
