"""Root-mean-square normalisation, plain and gated. Statistics are fp32 whatever the input type."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F

from ..kept import may_keep


@lru_cache(maxsize=16)
def _constant(value: float) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float32)  # whatever the default type is when it is first asked for


def inverse_root(x: torch.Tensor, eps: float, scale: float = 1.0) -> torch.Tensor:
    """1 / sqrt(scale * sum(x^2) + eps) over the last dimension, which is kept with size 1.

    The norm reads x once and leaves nothing of x's size behind, as squares would. On CPU the constant is a tensor made
    once: a number added to a tensor is made into one each time, which takes as long as the addition.

    Args:
        x: [..., n] fp32.
    """
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    constant = _constant(eps) if may_keep(x) else torch.tensor(eps, dtype=x.dtype, device=x.device)
    return torch.addcmul(constant, size, size, value=scale).rsqrt_()


def _normalised(x: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps), fp32."""
    return x * inverse_root(x, eps, 1.0 / x.shape[-1])


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
    return F.silu(gate.float()).mul_(normed).to(gate.dtype)
