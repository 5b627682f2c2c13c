"""Partial rotary position embedding with three interleaved position axes (mRoPE).

Text uses one position for all three axes, where mRoPE equals plain RoPE. Images use (time, height, width).
"""

from __future__ import annotations

from functools import lru_cache

import torch

from ...config import RopeConfig
from ..kept import may_keep


def _frequencies(dim: int, theta: float, device: torch.device) -> torch.Tensor:
    """theta^(-2i/dim), fp32 [dim / 2]."""
    return 1.0 / theta ** (torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)


@lru_cache(maxsize=4)
def _cpu_frequencies(dim: int, theta: float) -> torch.Tensor:
    with torch.inference_mode(False):
        return _frequencies(dim, theta, torch.device("cpu"))


def rotary_tables(positions: torch.Tensor, rope: RopeConfig, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the rotation angles.

    Angle i of dim/2 is position * theta^(-2i/dim). Of the three axes, height takes angles 1, 4, 7, ... up to three
    times its section, width 2, 5, 8, ..., and time the others.

    Args:
        positions: int [batch, tokens] for text, or [3, batch, tokens].
        dtype: type of the tables; angles are fp32.
    Returns:
        (cos, sin), each [batch, tokens, 1, dim / 2]; the singleton is for heads.
    """
    device = positions.device
    kept = may_keep(positions)
    frequencies = _cpu_frequencies(rope.dim, rope.theta) if kept else _frequencies(rope.dim, rope.theta, device)
    angles = positions.float().unsqueeze(-1) * frequencies
    if angles.dim() == 4:
        merged = angles[0].clone()
        for axis in (1, 2):
            take = slice(axis, rope.mrope_section[axis] * 3, 3)
            merged[..., take] = angles[axis][..., take]
        angles = merged
    angles = angles.unsqueeze(-2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first `dim` dimensions of every head, pairing dimension i with i + dim/2.

    Args:
        x: [batch, tokens, heads, head_dim].
        cos, sin: [batch, tokens, 1, dim / 2].
    """
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
