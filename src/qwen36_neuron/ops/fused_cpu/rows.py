"""Operations on rows: norms, the feed-forward activation and the attention gate."""

from __future__ import annotations

import torch
from numba import prange

from .scalar import Array, array, compiled, f32, one, sigmoid, silu
from .vectors import norm_row, norm_rows

FEW = 16384
"""Numbers up to which one core is done before a second one could be told."""


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`ops.norm.rms_norm` of fp32 x [..., n]."""
    out = torch.empty(x.shape)
    rows = array(x.reshape(-1, x.shape[-1]))
    normalise(rows, array(weight), f32(eps), array(out).reshape(rows.shape))
    return out


def swiglu(both: torch.Tensor) -> torch.Tensor:
    """`ops.activation.swiglu` of fp32 [..., 2 n]."""
    out = torch.empty(*both.shape[:-1], both.shape[-1] // 2)
    rows = array(both.reshape(-1, both.shape[-1]))
    activate(rows, array(out).reshape(rows.shape[0], -1))
    return out


@compiled(parallel=True)
def normalise(x: Array, weight: Array, eps: float, out: Array) -> None:
    """RMSNorm of rows x [rows, n] with weight [n]: into out [rows, n]."""
    if x.size <= FEW:
        norm_rows(x, weight, eps, out)
    else:
        for i in prange(x.shape[0]):
            norm_row(x[i], weight, eps, one, out[i])


@compiled(parallel=True)
def activate(both: Array, out: Array) -> None:
    """silu(gate) * up of rows [rows, 2 n], gates first: into out [rows, n]."""
    size = out.shape[1]
    if both.size <= FEW:
        for i in range(out.shape[0]):
            _activate_row(both[i, :size], both[i, size:], out[i])
    else:
        for i in prange(out.shape[0]):
            _activate_row(both[i, :size], both[i, size:], out[i])


@compiled()
def _activate_row(gate: Array, up: Array, out: Array) -> None:
    for j in range(out.shape[0]):
        out[j] = silu(gate[j]) * up[j]


@compiled()
def gate_row(x: Array, gate: Array) -> None:
    """x = x sigmoid(gate), of one head [n]."""
    for j in range(x.shape[0]):
        x[j] *= sigmoid(gate[j])
