"""More of ``nki.language``: functions that allocate their own SBUF result, built from ``nki.isa`` instructions.

AWS's documents call these experimental, and its kernels use none of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import context, isa
from .alu import OPS
from .dtypes import float32, int32, uint32
from .enums import MemoryRegion
from .errors import fail
from .tensor import Tensor


def new(like: Tensor, dtype: Any = None, shape: Sequence[int] | None = None) -> Tensor:
    """An SBUF tensor with the shape and type of another unless told otherwise."""
    return context.current("nl").allocate(shape or like.shape, dtype or like.dtype, MemoryRegion.sbuf, "", None)


def _wrapped_angle(x: Tensor, shift: float) -> Tensor:
    """x + shift less the nearest multiple of 2 pi, by the conversion to integer, which rounds to nearest."""
    turns, whole, angle = new(x, float32), new(x, int32), new(x, float32)
    isa.tensor_scalar(angle, x, OPS["add"], shift)
    isa.tensor_scalar(turns, angle, OPS["multiply"], 1.0 / (2.0 * np.pi))
    isa.tensor_copy(whole, turns)
    isa.scalar_tensor_tensor(angle, whole, OPS["multiply"], -2.0 * np.pi, OPS["add"], angle)
    isa.tensor_scalar(angle, angle, OPS["minimum"], float(np.pi), op1=OPS["maximum"], operand1=-float(np.pi))
    return angle


def sin(x: Tensor, dtype: Any = None) -> Tensor:
    """sin(x) of any x; the activation itself is valid on [-pi, pi]."""
    out = new(x, dtype)
    isa.activation(out, OPS["sin"], _wrapped_angle(x, 0.0))
    return out


def cos(x: Tensor, dtype: Any = None) -> Tensor:
    """cos(x) of any x."""
    out = new(x, dtype)
    isa.activation(out, OPS["sin"], _wrapped_angle(x, float(np.pi) / 2))
    return out


def tan(x: Tensor, dtype: Any = None) -> Tensor:
    """sin(x) / cos(x)."""
    below, out = cos(x, float32), new(x, dtype)
    isa.reciprocal(below, below)
    isa.tensor_tensor(out, sin(x, float32), below, OPS["multiply"])
    return out


def _rounded(x: Tensor, dtype: Any, compare: str, step: float) -> Tensor:
    nearest, wrong, out = new(x, int32), new(x, float32), new(x, dtype)
    isa.tensor_copy(nearest, x)
    isa.tensor_tensor(wrong, nearest, x, OPS[compare])
    isa.scalar_tensor_tensor(out, wrong, OPS["multiply"], step, OPS["add"], nearest)
    return out


def floor(x: Tensor, dtype: Any = None) -> Tensor:
    """Largest integer not above x, for |x| < 2^31."""
    return _rounded(x, dtype, "greater", -1.0)


def ceil(x: Tensor, dtype: Any = None) -> Tensor:
    """Smallest integer not below x, for |x| < 2^31."""
    return _rounded(x, dtype, "less", 1.0)


def trunc(x: Tensor, dtype: Any = None) -> Tensor:
    """x without its fraction."""
    size, sign, out = new(x, float32), new(x, float32), new(x, dtype)
    isa.activation(size, OPS["abs"], x)
    isa.activation(sign, OPS["sign"], x)
    isa.tensor_tensor(out, floor(size, float32), sign, OPS["multiply"])
    return out


def negative(x: Tensor, dtype: Any = None) -> Tensor:
    """-x."""
    out = new(x, dtype)
    isa.tensor_scalar(out, x, OPS["multiply"], -1.0)
    return out


def _reduced_shape(x: Tensor, axis: Any, keepdims: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    axes = tuple(sorted({a % len(x.shape) for a in (axis if isinstance(axis, (tuple, list)) else (axis,))}))
    shape = [1 if i in axes else s for i, s in enumerate(x.shape) if keepdims or i not in axes]
    return axes, tuple(shape) if len(shape) > 1 else (shape[0], 1)


def _reduction(name: str) -> Any:
    def call(x: Tensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> Tensor:
        axes, shape = _reduced_shape(x, axis, keepdims)
        out = new(x, dtype, shape)
        isa.tensor_reduce(out, OPS[name], x, axes)
        return out

    return call


sum_ = _reduction("add")
max_ = _reduction("maximum")
min_ = _reduction("minimum")
prod = _reduction("multiply")


def mean(x: Tensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """Mean over trailing free axes."""
    total = sum_(x, axis, dtype=float32, keepdims=keepdims)
    out = new(total, dtype or x.dtype)
    isa.tensor_scalar(out, total, OPS["multiply"], float(total.size) / x.size)
    return out


def var(x: Tensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """Population variance over all free axes."""
    axes, shape = _reduced_shape(x, axis, keepdims)
    if len(axes) != len(x.shape) - 1:
        fail("nl.var", "axis", f"{axis}: all free axes of {x.shape}")
    centre, apart, out = mean(x, axis, float32), new(x, float32), new(x, dtype, shape)
    isa.tensor_scalar(centre, centre, OPS["multiply"], -1.0)
    total = new(centre, float32)
    isa.activation_reduce(apart, OPS["square"], x, OPS["add"], total, bias=centre)
    isa.tensor_scalar(out, total, OPS["multiply"], float(x.shape[0]) / x.size)
    return out


def all_(x: Tensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """1 where every element along the trailing free axes is not zero."""
    axes, shape = _reduced_shape(x, axis, keepdims)
    out = new(x, dtype, shape)
    isa.tensor_reduce(out, OPS["logical_and"], x, axes)
    return out


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False) -> Tensor:
    """``x.T @ y`` into a new PSUM tensor; only ``transpose_x=True`` is supported, as on the device."""
    if not transpose_x:
        fail("nl.matmul", "transpose_x", "must be True")
    out = context.current("nl").allocate((x.shape[1], y.shape[1]), float32, MemoryRegion.psum, "", None)
    isa.nc_matmul(out, x, y)
    return out


def transpose(x: Tensor) -> Tensor:
    """x.T into a new PSUM tensor."""
    out = context.current("nl").allocate((x.shape[1], x.shape[0]), x.dtype, MemoryRegion.psum, "", None)
    isa.nc_transpose(out, x)
    return out


def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x where the condition is not zero, else y."""
    out = new(x)
    isa.tensor_copy(out, y)
    isa.tensor_copy_predicated(out, x, condition)
    return out


def softmax(x: Tensor, axis: Any = -1, dtype: Any = None) -> Tensor:
    """Softmax over the last axis of a [P, N] tile."""
    if len(x.shape) != 2 or axis not in (-1, 1):
        fail("nl.softmax", "axis", f"{axis} of {x.shape}: the last axis of a [P, N] tile")
    top, total, out = new(x, float32, (x.shape[0], 1)), new(x, float32, (x.shape[0], 1)), new(x, dtype)
    isa.tensor_reduce(top, OPS["maximum"], x, 1, negate=True)
    isa.activation_reduce(out, OPS["exp"], x, OPS["add"], total, bias=top)
    isa.reciprocal(total, total)
    isa.tensor_scalar(out, out, OPS["multiply"], total)
    return out


def rms_norm(x: Tensor, w: Tensor, axis: Any, n: int, epsilon: float = 1e-6) -> Tensor:
    """``x * rsqrt(sum(x^2) / n + epsilon) * w`` over the last axis of a [P, N] tile."""
    if len(x.shape) != 2 or axis not in (-1, 1):
        fail("nl.rms_norm", "axis", f"{axis} of {x.shape}: the last axis of a [P, N] tile")
    square, total, out = new(x, float32), new(x, float32, (x.shape[0], 1)), new(x)
    isa.activation_reduce(square, OPS["square"], x, OPS["add"], total)
    isa.activation(total, OPS["rsqrt"], total, scale=1.0 / n, bias=epsilon)
    isa.scalar_tensor_tensor(out, x, OPS["multiply"], total, OPS["multiply"], w)
    return out


def broadcast_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """A view of ``x`` with free dimensions of size 1 repeated by stride 0."""
    if len(shape) != len(x.shape) or any(a not in (b, 1) for a, b in zip(x.shape, shape, strict=True)):
        fail("nl.broadcast_to", "shape", f"{x.shape} does not broadcast to {tuple(shape)}")
    for dim, (a, b) in enumerate(zip(x.shape, shape, strict=True)):
        if a != b:
            x = x.broadcast(dim, b)
    return x


def expand_dims(x: Tensor, axis: int) -> Tensor:
    """A view of ``x`` with a free dimension of size 1 more."""
    return x.expand_dim(axis)


def gather_flattened(data: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """``data[p, indices[p, j]]``, free dimensions flattened."""
    if indices.dtype is not uint32:
        fail("nl.gather_flattened", "indices", f"must be uint32, not {indices.dtype}")
    out = new(indices, data.dtype)
    isa.nc_n_gather(out, data, indices)
    return out


def dropout(x: Tensor, rate: Any) -> Tensor:
    """x with elements zeroed at random."""
    out = new(x)
    isa.dropout(out, x, rate)
    return out


def rand(shape: Sequence[int], dtype: Any, buffer: MemoryRegion = MemoryRegion.sbuf, name: str = "") -> Tensor:
    """Uniform in [0, 1). The device's sequence is not reproduced."""
    out = context.current("rand").allocate(shape, dtype, buffer, name, None)
    isa.rng(out)
    return out


def random_seed(seed: Tensor) -> None:
    """Seed :func:`rand` from a [1, 1] tensor."""
    if not isinstance(seed, Tensor) or seed.shape != (1, 1):
        fail("nl.random_seed", "seed", "must be a [1, 1] tensor")
    isa.set_rng_seed(seed)


FUNCTIONS: dict[str, Any] = {
    f.__name__: f
    for f in (
        broadcast_to, ceil, cos, dropout, expand_dims, floor, gather_flattened, matmul, mean, negative, rand,
        random_seed, rms_norm, softmax, tan, transpose, trunc, var, where,
    )
} | {"sum": sum_, "max": max_, "min": min_, "prod": prod, "all": all_}  # fmt: skip
