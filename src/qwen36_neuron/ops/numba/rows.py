"""Operations on rows: norms, the feed-forward activation, the attention gate and rotary embedding."""

from __future__ import annotations

import torch
from numba import prange

from .scalar import Array, array, compiled, f32, one, sigmoid, silu
from .vectors import norm_row, norm_rows, rotate_row

FEW = 16384
"""Numbers up to which one core is done before a second one could be told."""


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`ops.norm.rms_norm` of fp32 x [..., n]."""
    out = torch.empty(x.shape)
    rows = array(x.reshape(-1, x.shape[-1]))
    normalise(rows, array(weight), f32(eps), array(out).reshape(rows.shape))
    return out


def swiglu(both: torch.Tensor) -> torch.Tensor:
    """`ops.mlp.swiglu` of fp32 [..., 2 n]."""
    out = torch.empty(*both.shape[:-1], both.shape[-1] // 2)
    rows = array(both.reshape(-1, both.shape[-1]))
    activate(rows, array(out).reshape(rows.shape[0], -1))
    return out


def norm_and_rotate(
    x: torch.Tensor, weight: torch.Tensor, eps: float, rotary: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """RMSNorm of every head, then `ops.attention.apply_rotary`.

    Args:
        x: [batch, tokens, 2 * heads * n] fp32, the heads before what belongs to them, gates or values.
        weight: [n] fp32.
        rotary: (cos, sin), each [batch, tokens, 1, dim / 2] with dim <= n.
    Returns:
        [batch, tokens, heads, n].
    """
    out = torch.empty(*x.shape[:2], x.shape[2] // 2 // len(weight), len(weight))
    cos, sin = (array(table.flatten(0, 2)) for table in rotary)
    _norm_and_rotate(array(x.flatten(0, 1)), array(weight), f32(eps), cos, sin, array(out.flatten(0, 1)))
    return out


def gate_heads(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(gate), in place: x [batch, tokens, m] fp32, the gates being the last m columns of `gate`."""
    _gate_heads(array(x.flatten(0, 1)), array(gate.flatten(0, 1)))
    return x


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


@compiled(parallel=True)
def _norm_and_rotate(x: Array, weight: Array, eps: float, cos: Array, sin: Array, out: Array) -> None:
    size = out.shape[2]
    for i in prange(out.shape[0]):
        for h in range(out.shape[1]):
            norm_row(x[i, h * size : (h + 1) * size], weight, eps, one, out[i, h])
            rotate_row(out[i, h], cos[i], sin[i])


@compiled()
def gate_row(x: Array, gate: Array) -> None:
    """x = x sigmoid(gate), of one head [n]."""
    for j in range(x.shape[0]):
        x[j] *= sigmoid(gate[j])


@compiled(parallel=True)
def _gate_heads(x: Array, gate: Array) -> None:
    for i in prange(x.shape[0]):
        gate_row(x[i], gate[i, gate.shape[1] - x.shape[1] :])
