"""Loops over vectors [n], which a compiler turns into vector instructions.

It does so only for plain indices of memory without gaps. An index that is a sum could be negative, which means "from
the end" in Python and costs a test a number; so callers cut the part they mean, `x[i, first : first + n]`, and hand it
over. Such a part of a contiguous array is known to be contiguous; a part of a part, `x[first : last, i][t]`, is not.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .scalar import Array, compiled, f32, one, silu, zero

L2_EPS = f32(1e-6)
"""Of `gated_delta_rule.naive.L2_EPS`."""


LINE = 16
"""Numbers of a cache line."""


@intrinsic
def _prefetch_line(_context: Any, x: Any, at: Any) -> Any:
    """Ask for the cache line of number `at` of x [n]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index = arguments
        place = builder.gep(context.make_array(signature.args[0])(context, builder, array).data, [index])
        byte, integer = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, integer, integer, integer])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read, to_keep, data = (ir.Constant(integer, value) for value in (0, 3, 1))
        builder.call(call, [builder.bitcast(place, byte), to_read, to_keep, data])
        return context.get_dummy_value()

    return types.void(x, types.intp), generate


@compiled()
def prefetch(x: Array) -> None:
    """Ask for a vector that will be read soon, where the processor does not see it coming.

    It foresees the next lines of what is being read, but not a part of the next row, which lies in another page.
    """
    for j in range(0, x.shape[0], LINE):
        _prefetch_line(x, j)


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
def convolve_four(a: Array, b: Array, c: Array, d: Array, first: int, taps: Array, out: Array) -> None:
    """silu of channels first .. first + n of four tokens [channels], oldest first, times taps [4, channels]."""
    end = first + out.shape[0]
    _convolve_four(
        a[first:end],
        b[first:end],
        c[first:end],
        d[first:end],
        taps[0, first:end],
        taps[1, first:end],
        taps[2, first:end],
        taps[3, first:end],
        out,
    )


@compiled()
def _convolve_four(
    a: Array, b: Array, c: Array, d: Array, for_a: Array, for_b: Array, for_c: Array, for_d: Array, out: Array
) -> None:
    for j in range(out.shape[0]):
        out[j] = silu(a[j] * for_a[j] + b[j] * for_b[j] + c[j] * for_c[j] + d[j] * for_d[j])


@compiled()
def l2_normalise(x: Array, length: float) -> None:
    """Scale a vector to `length` in place, as `gated_delta_rule.naive.l2norm` does."""
    scale(length / math.sqrt(dot(x, x) + L2_EPS), x, x)


@compiled()
def norm_row(x: Array, weight: Array, eps: float, factor: float, out: Array) -> None:
    """factor x / sqrt(mean(x^2) + eps) * weight, of one row."""
    factor = factor / math.sqrt(dot(x, x) / f32(x.shape[0]) + eps)
    for j in range(x.shape[0]):
        out[j] = x[j] * factor * weight[j]


@compiled()
def norm_rows(x: Array, weight: Array, eps: float, out: Array) -> None:
    """RMSNorm of rows [rows, n], one after the other."""
    for i in range(x.shape[0]):
        norm_row(x[i], weight, eps, one, out[i])


@compiled()
def gated_norm_row(x: Array, squares: float, gate: Array, weight: Array, eps: float, out: Array) -> None:
    """`ops.norm.gated_rms_norm` of one row, the sum of whose squares is known."""
    factor = one / math.sqrt(squares / f32(x.shape[0]) + eps)
    for j in range(x.shape[0]):
        out[j] = x[j] * factor * weight[j] * silu(gate[j])


@compiled()
def rotate_row(x: Array, cos: Array, sin: Array) -> None:
    """Rotate the head x [n] in place by cos and sin [dim / 2]: `ops.attention.apply_rotary` of one row."""
    half = cos.shape[0]
    first, second = x[:half], x[half : 2 * half]
    for j in range(half):
        a, b = first[j], second[j]
        first[j] = a * cos[j] - b * sin[j]
        second[j] = b * cos[j] + a * sin[j]
