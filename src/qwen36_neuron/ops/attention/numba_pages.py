"""Paged keys and values inside compiled functions: fp32, or FP8 that becomes fp32 in a register or in a core's cache.

Which of the two it is is known when a function is compiled, from the type of the memory: of fp32 nothing is copied that
would not be anyway.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from ...errors import ConfigError
from ..fp8 import LARGEST, STORAGE
from ..numba.held import number
from ..numba.panels import FP8_UNIT, HAS_HALVES
from ..numba.product import Part
from ..numba.scalar import Array, array, compiled, f32
from ..numba.vectors import copy

INLINE = {"forceinline": True, "nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}
"""How the functions below are compiled: into whatever calls them, in the order in which they are written."""


class Pages(NamedTuple):
    """The keys and values of an attention layer, BLOCK_SIZE positions a block.

    Attributes:
        keys, values: fp32, or uint8 codes of FP8, [positions, kv_heads, n].
        key_scales, value_scales: fp32 [kv_heads], what a number is multiplied with that `held` gives.
        key_rates, value_rates: fp32 [kv_heads], what a number is multiplied with before `put` stores it.
    """

    keys: Array
    values: Array
    key_scales: Array
    value_scales: Array
    key_rates: Array
    value_rates: Array

    @classmethod
    def of(
        cls,
        keys: torch.Tensor,
        values: torch.Tensor,
        key_scales: torch.Tensor | None = None,
        value_scales: torch.Tensor | None = None,
    ) -> Pages:
        """Over memory [positions, kv_heads, n], fp32 or FP8.

        Args:
            key_scales, value_scales: fp32 [kv_heads], of FP8.
        Raises:
            ConfigError: this processor cannot read FP8.
        """
        ones = np.ones(keys.shape[1], np.float32)
        if key_scales is None or value_scales is None:
            return cls(array(keys), array(values), ones, ones, ones, ones)
        if not HAS_HALVES:
            problem = "is read through halves, for which this processor has no instruction (F16C)"
            raise ConfigError("kv_cache_dtype", "fp8", problem, "Use kernels=torch")
        assert keys.dtype == values.dtype == STORAGE
        scales = [array(scale * FP8_UNIT) for scale in (key_scales, value_scales)]
        rates = [array(scale.reciprocal()) for scale in (key_scales, value_scales)]
        return cls(*(array(half.view(torch.uint8)) for half in (keys, values)), *scales, *rates)


@intrinsic
def _bits_of_float(_context: Any, value: Any) -> Any:
    """The bits of an fp32 number, int32."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


MOST = f32(LARGEST)
SMALLEST_NORMAL = f32(2.0**-6)
MAGIC = f32(2.0**14)
"""A number in fp32 whose last digit is 2^-9, E4M3's smallest number: what is added to it is rounded to that."""


@compiled(reorder=False)
def code_of(x: float) -> int:
    """The code of the E4M3 number nearest to x, halves to the even one, at most `MOST` in magnitude: `ops.fp8`.

    Of a normal number it is exponent and three digits, rounded by adding half of the last to the bits; of a smaller one
    the number of 2^-9 that it has.
    """
    size = min(abs(x), MOST)
    bits = _bits_of_float(size)
    normal = ((bits + np.int32(0x7FFFF) + ((bits >> np.int32(20)) & np.int32(1))) >> np.int32(20)) - np.int32(120 << 3)
    small = _bits_of_float(size + MAGIC) - np.int32(0x46800000)
    code = normal if size >= SMALLEST_NORMAL else small
    return code | ((_bits_of_float(x) >> np.int32(24)) & np.int32(0x80))


@compiled(reorder=False)
def _encode(x: Array, rate: float, out: Array) -> None:
    for j in range(out.shape[0]):
        out[j] = np.uint8(code_of(x[j] * rate))


@compiled()
def _widen(stored: Array, out: Array) -> None:
    """Numbers over FP8_UNIT."""
    for j in range(out.shape[0]):
        out[j] = number(stored[j])


def put(x: Array, rate: float, out: Array) -> None:
    """Store x [n], fp32, times a rate."""
    raise NotImplementedError("inside compiled functions alone")


@overload(put, jit_options=INLINE, strict=False)
def _put(x: Any, rate: Any, out: Any) -> Any:
    if out.dtype == types.uint8:
        return lambda x, rate, out: _encode(x, rate, out)
    return lambda x, rate, out: copy(x, out)


def held(stored: Array, room: Array) -> Array:
    """What was stored, fp32 [n]: where it lies, or in `room`, fp32 [n]."""
    raise NotImplementedError("inside compiled functions alone")


@overload(held, jit_options=INLINE, strict=False)
def _held(stored: Any, room: Any) -> Any:
    if stored.dtype == types.uint8:

        def widened(stored: Array, room: Array) -> Array:
            _widen(stored, room)
            return room

        return widened
    return lambda stored, room: stored


def take(stored: Array, out: Array) -> None:
    """What was stored, into out [n]."""
    raise NotImplementedError("inside compiled functions alone")


@overload(take, jit_options=INLINE, strict=False)
def _take(stored: Any, out: Any) -> Any:
    if stored.dtype == types.uint8:
        return lambda stored, out: _widen(stored, out)
    return lambda stored, out: copy(stored, out)


def part_of(memory: Array, first: Any, kv: int, count: int, room: Array) -> Part:
    """`count` positions of a head from `first` on as a matrix [count, n]: where they lie, or in `room`.

    Args:
        memory: [positions, kv_heads, n]; room: fp32 [count or more, n].
    """
    raise NotImplementedError("inside compiled functions alone")


@overload(part_of, jit_options=INLINE, strict=False)
def _part_of(memory: Any, first: Any, kv: Any, count: Any, room: Any) -> Any:
    if memory.dtype == types.uint8:

        def widened(memory: Array, first: int, kv: int, count: int, room: Array) -> Part:
            for t in range(count):
                _widen(memory[first + t, kv], room[t])
            return Part(room.reshape(room.size), 0, room.shape[1], 1)

        return widened

    def in_place(memory: Array, first: int, kv: int, count: int, room: Array) -> Part:
        heads, size = memory.shape[1], memory.shape[2]
        return Part(memory.reshape(memory.size), (first * heads + kv) * size, heads * size, 1)

    return in_place
