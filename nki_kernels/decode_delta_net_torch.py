"""Torch reference of a decode step's DeltaNet mixer."""

import torch
import torch.nn.functional as F

from .causal_conv1d_torch import causal_conv1d_step_torch
from .decode_projection_torch import gated_norm_projection_torch
from .gated_delta_rule_decode_torch import gated_delta_rule_decode_torch

TILE = 128


def decode_delta_net_torch(
    x: torch.Tensor,
    qkvz: torch.Tensor,
    ba: torch.Tensor,
    windows: torch.Tensor,
    states: torch.Tensor,
    taps: torch.Tensor,
    decays: torch.Tensor,
    factor: torch.Tensor,
    weight: torch.Tensor,
    read: torch.Tensor,
    write: torch.Tensor,
    scale: torch.Tensor | None = None,
    ranks: int = 1,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `decode_delta_net`: what this rank brings to the sum over ranks, fp32 [B, H]; banks written in place."""
    batch, heads, channels = len(x), states.shape[1], windows.shape[2]
    mixed, _ = causal_conv1d_step_torch(qkvz[:, None, :channels], windows, taps, read, write)
    q, k, v = mixed.split(((channels - heads * TILE) // 2,) * 2 + (heads * TILE,), dim=2)
    beta, g = delta_net_gates(ba, decays)
    q, k, v = (part.view(batch, 1, -1, TILE) for part in (q, k, v))
    out, _ = gated_delta_rule_decode_torch(q, k, v, g[:, None], beta[:, None], states, read, write)
    gate = qkvz[:, channels:].view(batch, heads, TILE)
    return gated_norm_projection_torch(x, out[:, 0], gate, factor, weight, scale, ranks, eps), windows, states


def delta_net_gates(ba: torch.Tensor, decays: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """beta and g, fp32 [tokens, heads], of [tokens, 2 * heads]."""
    b, a = ba.float().chunk(2, dim=1)
    return torch.sigmoid(b), decays[0] * F.softplus(a + decays[1])
