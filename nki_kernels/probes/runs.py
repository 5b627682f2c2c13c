"""Arguments and expected results of the probes' runs. Values come from a fixed seed; none is near a rounding tie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from .probe import Arrays, Run

BF16 = ml_dtypes.bfloat16
FP8 = ml_dtypes.float8_e4m3
ROWS = 128

EXACT, FP32, BF16_SUM = 0.0, 2e-6, 2e-5
"""Bars: moved bits; sums in float32; sums in float32 of bfloat16 products, in any order."""

FUNCTION = 1e-3
"""Bar of a function of ScalarE at 0."""


def normal(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32).astype(dtype)


def given(*arrays: np.ndarray) -> Callable[[int], Arrays]:
    """The same arguments for any number of cores."""
    return lambda cores: tuple(array.copy() for array in arrays)


def whole(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Small whole numbers, whose sums are exact."""
    return np.random.default_rng(1).integers(-4, 5, shape).astype(dtype)


def same(tiles: int = 0) -> Callable[[Arrays, int, int], np.ndarray]:
    """The first argument, `tiles` times where the result has that many."""
    return lambda args, repeats, core: np.stack([args[0]] * tiles) if tiles else args[0]


def moved(kernel: Any, x: np.ndarray, copies: int = 1, /, **options: Any) -> Run:
    """A kernel that gives its argument back, bit for bit."""
    return Run(kernel, given(x), same(copies), EXACT, options, repeats=4)


def product_of(a: np.ndarray, b: np.ndarray, step: int = 1) -> np.ndarray:
    """a^T @ every step-th column of b, in float64."""
    return a.astype(np.float64).T @ b.astype(np.float64)[:, ::step]


def product(kernel: Any, k: int, m: int, n: int, dtype: Any, step: int = 1, ones: bool = False, **options: Any) -> Run:
    """Sums of products of whole numbers, which every order of adding gives exactly; with `ones` a is of 0 and 1."""
    a, b = whole(k, m, dtype=dtype), whole(k, n * step, dtype=dtype)
    if ones:
        a = (a > 0).astype(dtype)
    if step > 1:
        options["step"] = step

    def expected(args: Arrays, repeats: int, core: int) -> np.ndarray:
        return np.stack([product_of(args[0], args[1], step) * (repeats // 4)] * 4)

    return Run(kernel, given(a, b), expected, EXACT, options, repeats=4)


def constant(value: float, columns: int, tiles: int) -> Callable[[Arrays, int, int], np.ndarray]:
    """Every element `value`."""
    return lambda args, repeats, core: np.full((tiles, ROWS, columns), value)


def halves(dtype: Any) -> Callable[[Arrays, int, int], np.ndarray]:
    """The products of the upper and the lower half, summed over the repeats."""

    def expected(args: Arrays, repeats: int, core: int) -> np.ndarray:
        a, b = args
        parts = (slice(0, ROWS // 2), slice(ROWS // 2, ROWS))
        return np.stack([product_of(a[part], b[part]) * (repeats // 2) for part in parts])

    return expected


def other_core(args: Arrays, repeats: int, core: int) -> np.ndarray:
    """The other core's part of the argument."""
    return args[0][1 - core]


def per_core(rows: int, columns: int) -> Callable[[int], Arrays]:
    """[cores, rows, columns]."""
    return lambda cores: (normal(cores, rows, columns),)
