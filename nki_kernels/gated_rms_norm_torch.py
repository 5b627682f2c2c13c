"""Torch references of `gated_rms_norm` and `qk_l2norm`: same arguments, same results."""

import torch
import torch.nn.functional as F


def gated_rms_norm_torch(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """See `gated_rms_norm`."""
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return (normed * weight.float() * F.silu(gate.float())).to(gate.dtype)


def qk_l2norm_torch(x: torch.Tensor, scale: float = 1.0, eps: float = 1e-6) -> torch.Tensor:
    """See `qk_l2norm`."""
    return (scale * x.float() * torch.rsqrt(x.float().square().sum(-1, keepdim=True) + eps)).to(x.dtype)
