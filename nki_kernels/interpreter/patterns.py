"""Strides: what numbers of elements and steps say of a view."""

from collections.abc import Sequence


def prod(values: Sequence[int]) -> int:
    """Product of integers."""
    n = 1
    for v in values:
        n *= v
    return n


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides in elements."""
    out = [1] * len(shape)
    for d in range(len(shape) - 2, -1, -1):
        out[d] = out[d + 1] * shape[d + 1]
    return tuple(out)


def merged(shape: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """(stride, count) pairs with size-1 dimensions dropped and contiguous neighbours merged, outermost first."""
    out: list[tuple[int, int]] = []
    for n, s in zip(shape, strides, strict=True):
        if n == 1:
            continue
        if out and out[-1][0] == s * n:
            out[-1] = (s, out[-1][1] * n)
        else:
            out.append((s, n))
    return out


def reshape_strides(shape: Sequence[int], strides: Sequence[int], new: Sequence[int]) -> tuple[int, ...] | None:
    """Strides that show the same elements in shape ``new``, or None if only a copy could."""
    runs = merged(shape, strides)
    out: list[int] = [0] * len(new)
    i = len(runs) - 1
    left, stride = (runs[i][1], runs[i][0]) if runs else (1, 1)
    for d in range(len(new) - 1, -1, -1):
        n = new[d]
        if n == 1:
            out[d] = stride
            continue
        if left == 1 and i > 0:
            i -= 1
            left, stride = runs[i][1], runs[i][0]
        if left % n:
            return None
        out[d] = stride
        stride *= n
        left //= n
    return tuple(out)
