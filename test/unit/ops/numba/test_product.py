"""Products inside compiled functions against fp64."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from qwen36_neuron.ops.numba.product import COLUMNS, FULL, LOWER, PADDING, ROWS, Part, below, product, transpose, whole
from qwen36_neuron.ops.numba.scalar import Array, compiled

EDGES = ((ROWS, COLUMNS), (3 * ROWS, 2 * COLUMNS), (1, 1), (ROWS - 1, COLUMNS - 1), (ROWS + 1, COLUMNS + 1), (64, 100))
"""(rows, columns): whole tiles, less than one, and a rest on one side or on both."""


@compiled(inline=False)
def _run(
    a: Array,
    transposed: bool,
    b: Array,
    depth: int,
    scales: Array,
    keep: float,
    c: Array,
    top: int,
    left: int,
    rows: int,
    columns: int,
    shape: int,
) -> None:
    """The product of matrices that lie `top` rows and `left` columns inside larger ones."""
    first = below(transpose(a) if transposed else whole(a), top, left)
    product(first, below(whole(b), top, left), depth, scales, keep, below(whole(c), top, left), rows, columns, shape)


def operands(rows: int, columns: int, depth: int, seed: int = 0) -> tuple[Array, Array, Array, Array]:
    """A [rows, depth], B [depth, columns], C [rows, columns] and scales [rows]."""
    draw = np.random.default_rng(seed)
    shapes = (rows, depth), (depth, columns), (rows, columns), (rows,)
    a, b, c, scales = (draw.standard_normal(shape).astype(np.float32) for shape in shapes)
    return a, b, c, scales


def inside(x: Array, top: int = 2, left: int = 3) -> Array:
    """x in a larger matrix, NaN around it."""
    made = np.full((x.shape[0] + top + 1, x.shape[1] + left + PADDING), np.nan, np.float32)
    made[top : top + x.shape[0], left : left + x.shape[1]] = x
    return made


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("keep", [0.0, 1.0, 0.25])
@pytest.mark.parametrize("depth", [0, 1, 37, 128])
@pytest.mark.parametrize(("rows", "columns"), EDGES)
def test_parts_of_matrices(rows: int, columns: int, depth: int, keep: float, transposed: bool) -> None:
    """Nothing outside the parts is read into the result or written. fp32 sums of `depth` products: 1e-6 of the sum
    of their sizes.
    """
    a, b, c, scales = operands(rows, columns, depth)
    held = inside(c if keep else np.full_like(c, np.nan))  # not read if nothing of it is kept
    before, a_held = held.copy(), inside(a)
    if transposed:
        a_held = np.ascontiguousarray(inside(a.T, 3, 2))
    _run(a_held, transposed, inside(b), depth, scales, np.float32(keep), held, 2, 3, rows, columns, FULL)
    wide = scales[:, None].astype(np.float64)
    expected = wide * (a.astype(np.float64) @ b) + (keep * c if keep else 0.0)
    found = held[2 : 2 + rows, 3 : 3 + columns].copy()
    size = np.abs(wide) * (np.abs(a).astype(np.float64) @ np.abs(b)) + np.abs(c)
    assert (np.abs(found - expected) <= 1e-6 * size).all()
    held[2 : 2 + rows, 3 : 3 + columns] = before[2 : 2 + rows, 3 : 3 + columns]
    assert np.array_equal(held, before, equal_nan=True)


@pytest.mark.parametrize(("rows", "columns"), EDGES)
def test_a_lower_triangle_is_read_no_further_than_a_tile(rows: int, columns: int) -> None:
    a, b, c, scales = operands(rows, columns, rows)
    reached = np.arange(rows) // ROWS * ROWS + ROWS  # columns that the tile of a row reaches
    if rows % ROWS:
        reached[rows - rows % ROWS :] = np.arange(rows - rows % ROWS, rows) + 1
    a = np.where(np.arange(rows)[None, :] <= np.arange(rows)[:, None], a, 0.0).astype(np.float32)
    held = np.where(np.arange(rows)[None, :] < reached[:, None], a, np.nan).astype(np.float32)
    _run(held, False, b, rows, scales, np.float32(1.0), c_held := c.copy(), 0, 0, rows, columns, LOWER)
    expected = scales[:, None].astype(np.float64) * (a.astype(np.float64) @ b) + c
    assert np.abs(c_held - expected).max() <= 1e-5


def test_a_part_of_a_part() -> None:
    memory = np.arange(60, dtype=np.float32)
    part = below(Part(memory, 5, 10, 1), 2, 3)
    assert (part.at, part.row, part.step) == (28, 10, 1)
