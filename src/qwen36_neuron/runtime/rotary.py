"""Cosines and sines for compiled calls."""

from __future__ import annotations

import torch

from ..ops.attention import rotary_tables
from ..ops.numba.scalar import Array, array
from ..rope import RopeConfig


def rotary_at(rope: RopeConfig, positions: Array) -> tuple[Array, Array]:
    """cos and sin of text, where all three axes are the same: positions int64 [n, m] -> each fp32 [n, m, dim / 2]."""
    cos, sin = rotary_tables(torch.from_numpy(positions), rope, torch.float32)
    return array(cos[:, :, 0]), array(sin[:, :, 0])
