"""Loops over vectors [n], which a compiler turns into vector instructions.

It does so for plain indices of memory without gaps only. An index that is a sum could be negative, which means "from the
end" in Python and costs a test a number; so callers cut the part they mean, `x[i, first : first + n]`, and hand it over.
Such a part of a contiguous array is known to be contiguous; a part of a part, `x[first : last, i][t]`, is not.
"""

from __future__ import annotations

import math

from .scalar import Array, compiled, f32, one, silu, zero

L2_EPS = f32(1e-6)
"""Of `gated_delta_rule.L2_EPS`."""


@compiled()
def fill(value: float, out: Array) -> None:
    """out = value."""
    for j in range(out.shape[0]):
        out[j] = value


@compiled()
def copy(x: Array, out: Array) -> None:
    """out = x."""
    for j in range(out.shape[0]):
        out[j] = x[j]


@compiled()
def scale(factor: float, x: Array, out: Array) -> None:
    """out = factor x, which may be in place."""
    for j in range(out.shape[0]):
        out[j] = factor * x[j]


@compiled()
def multiply(x: Array, y: Array, out: Array) -> None:
    """out = x y."""
    for j in range(out.shape[0]):
        out[j] = x[j] * y[j]


@compiled()
def add_product(x: Array, y: Array, out: Array) -> None:
    """out += x y."""
    for j in range(out.shape[0]):
        out[j] += x[j] * y[j]


@compiled()
def add_scaled(factor: float, x: Array, out: Array) -> None:
    """out += factor x."""
    for j in range(out.shape[0]):
        out[j] += factor * x[j]


@compiled()
def dot(x: Array, y: Array) -> float:
    """The sum of x y."""
    total = zero
    for j in range(x.shape[0]):
        total += x[j] * y[j]
    return total


@compiled()
def activate_all(x: Array) -> None:
    """x = silu(x), in place."""
    for j in range(x.shape[0]):
        x[j] = silu(x[j])


@compiled()
def make_unit(x: Array, length: float) -> None:
    """Scale a vector to `length` in place, as `gated_delta_rule.l2norm` does."""
    scale(length / math.sqrt(dot(x, x) + L2_EPS), x, x)


@compiled()
def norm_row(x: Array, weight: Array, eps: float, factor: float, out: Array) -> None:
    """factor x / sqrt(mean(x^2) + eps) * weight, of one row."""
    factor = factor / math.sqrt(dot(x, x) / f32(x.shape[0]) + eps)
    for j in range(x.shape[0]):
        out[j] = x[j] * factor * weight[j]


@compiled()
def gated_norm_row(x: Array, gate: Array, weight: Array, eps: float, out: Array) -> None:
    """`ops.norm.gated_rms_norm` of one row."""
    factor = one / math.sqrt(dot(x, x) / f32(x.shape[0]) + eps)
    for j in range(x.shape[0]):
        out[j] = x[j] * factor * weight[j] * silu(gate[j])


@compiled()
def rotate_row(x: Array, cos: Array, sin: Array) -> None:
    """Rotate the head x [n] in place by cos and sin [dim / 2]: `ops.rope.apply_rotary` of one row."""
    half = cos.shape[0]
    first, second = x[:half], x[half : 2 * half]
    for j in range(half):
        a, b = first[j], second[j]
        first[j] = a * cos[j] - b * sin[j]
        second[j] = b * cos[j] + a * sin[j]
