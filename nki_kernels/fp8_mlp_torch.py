"""Torch reference of `fp8_mlp`: same arguments, the result of one core."""

import torch
import torch.nn.functional as F


def decode_e4m3(codes: torch.Tensor) -> torch.Tensor:
    """float8_e4m3 (IEEE-like, bias 7, largest 240) codes as fp32; exponent 15 is infinity or NaN."""
    sign = 1.0 - 2.0 * (codes >> 7).float()
    exponent, fraction = ((codes >> 3) & 15).float(), (codes & 7).float()
    small = fraction * 2.0**-9
    large = (1 + fraction / 8) * torch.exp2(exponent - 7)
    special = torch.where(fraction == 0, torch.inf, torch.nan)
    return sign * torch.where(exponent == 0, small, torch.where(exponent == 15, special, large))


def fp8_mlp_torch(
    x: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    gate_scale: torch.Tensor,
    up_scale: torch.Tensor,
    down_scale: torch.Tensor,
) -> torch.Tensor:
    """See `fp8_mlp`."""
    x = x.float()
    opened = F.silu((x @ decode_e4m3(gate)) * gate_scale.T)
    inner = (opened * ((x @ decode_e4m3(up)) * up_scale.T)).to(torch.bfloat16).float()
    return ((inner @ decode_e4m3(down)) * down_scale).unsqueeze(0)
