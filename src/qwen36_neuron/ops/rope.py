"""Partial rotary position embedding with three interleaved position axes (mRoPE).

Text uses one position for all three axes, where mRoPE equals plain RoPE. Images use (time, height, width).
"""

from __future__ import annotations

import torch

from ..config import RopeConfig


def rotary_tables(positions: torch.Tensor, rope: RopeConfig, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the rotation angles.

    Angle i of dim/2 is position * theta^(-2i/dim). Of the three axes, height takes angles 1, 4, 7, ... up to three
    times its section, width 2, 5, 8, ..., and time the others.

    Args:
        positions: int [batch, tokens] for text, or [3, batch, tokens].
        dtype: type of the tables; angles are fp32.
    Returns:
        (cos, sin), each [batch, tokens, 1, dim]; the singleton is for heads. Both halves hold the same angles.
    """
    exponent = torch.arange(0, rope.dim, 2, device=positions.device, dtype=torch.float32) / rope.dim
    angles = positions.float().unsqueeze(-1) * (1.0 / rope.theta**exponent)
    if angles.dim() == 4:
        merged = angles[0].clone()
        for axis in (1, 2):
            take = slice(axis, rope.mrope_section[axis] * 3, 3)
            merged[..., take] = angles[axis][..., take]
        angles = merged
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(-2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first `dim` dimensions of every head, pairing dimension i with i + dim/2.

    Args:
        x: [batch, tokens, heads, head_dim].
        cos, sin: [batch, tokens, 1, dim].
    """
    dim = cos.shape[-1]
    half = dim // 2
    head, rest = x[..., :dim], x[..., dim:]
    turned = torch.cat((-head[..., half:], head[..., :half]), dim=-1)
    return torch.cat((head * cos + turned * sin, rest), dim=-1)
