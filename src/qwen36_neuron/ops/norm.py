"""Root-mean-square normalisation, plain and gated. Statistics are fp32 whatever the input type."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    Args:
        x: [..., n], any float type.
        weight: [n] fp32, the full factor: checkpoints store it minus one and the loader adds the one in fp32.
    Returns:
        [..., n] of x's type.
    """
    return F.rms_norm(x.float(), (x.shape[-1],), weight, eps).to(x.dtype)


def gated_rms_norm(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """rms_norm(x) * weight * silu(gate): normalised before it is gated.

    Args:
        x: [..., n] fp32, the output of the delta rule.
        gate: [..., n], any float type; the result has this type.
        weight: [n] of gate's type, stored as the full factor (not minus one).
    """
    normed = F.rms_norm(x, (x.shape[-1],), None, eps).to(gate.dtype) * weight
    return (normed * F.silu(gate.float())).to(gate.dtype)
