"""Which bytes an instruction touches, as boxes, and the dependencies that follow."""

from functools import lru_cache
from typing import NamedTuple

from .tensor import Access


class Box(NamedTuple):
    """A rectangle of rows (partitions, or indices of dimension 0 in HBM) and bytes in the row.

    Attributes:
        r0, r1, c0, c1: Half-open ranges.
        period, width: When the bytes of a row are runs of ``width`` that begin every ``period``; period 0 otherwise.
        dense: Every byte of the rectangle is touched.
    """

    r0: int
    r1: int
    c0: int
    c1: int
    period: int
    width: int
    dense: bool


@lru_cache(maxsize=65536)
def _box(row: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> Box:
    r0 = offset // row
    rows = 1
    inner: list[tuple[int, int]] = []
    dense_rows = True
    for n, s in zip(shape, strides, strict=True):
        if n == 1 or s == 0:
            continue
        if s % row == 0:
            steps = s // row
            dense_rows = dense_rows and (steps == 1 or steps == rows)
            rows += steps * (n - 1)
        else:
            inner.append((abs(s), n))
    c0 = offset - r0 * row
    inner.sort()
    extent, dense = itemsize, True
    period = width = 0
    for s, n in inner:
        if s > extent:
            dense = False
            period, width = (s, extent) if not period else (0, 0)
        extent = s * (n - 1) + extent
    if c0 + extent > row:
        # The pattern wraps over rows: take whole rows.
        return Box(r0, (offset + extent - 1) // row + rows, 0, row, 0, 0, False)
    return Box(r0, r0 + rows, c0, c0 + extent, period, width, dense and dense_rows)


def box_of(access: Access) -> Box:
    """The box of one operand."""
    info, dtype, offset, shape, strides = access
    return _box(max(info.row_bytes, 1), offset, shape, strides, dtype.itemsize)


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes of one allocation may share a byte."""
    if a.r1 <= b.r0 or b.r1 <= a.r0 or a.c1 <= b.c0 or b.c1 <= a.c0:
        return False
    if a.period and a.period == b.period:
        x, y = a.c0 % a.period, b.c0 % a.period
        if x + a.width <= a.period and y + b.width <= a.period:
            return x < y + b.width and y < x + a.width
    elif a.period and b.c1 - b.c0 <= a.period:
        return _run_meets(a, b)
    elif b.period and a.c1 - a.c0 <= b.period:
        return _run_meets(b, a)
    return True


def _run_meets(periodic: Box, run: Box) -> bool:
    p = periodic.period
    x, y = periodic.c0 % p, run.c0 % p
    if x + periodic.width > p:
        return True
    end = y + (run.c1 - run.c0)
    return (x < end and y < x + periodic.width) or (end > p and x < end - p)


def _covers(a: Box, b: Box) -> bool:
    return a.dense and a.r0 <= b.r0 and a.r1 >= b.r1 and a.c0 <= b.c0 and a.c1 >= b.c1


class Tracker:
    """Finds each instruction's producers: reads after writes, writes after reads, writes after writes."""

    def __init__(self) -> None:
        self._writes: dict[int, list[tuple[Box, int]]] = {}
        self._reads: dict[int, list[tuple[Box, int]]] = {}

    def add(self, index: int, reads: tuple[Access, ...], writes: tuple[Access, ...]) -> dict[int, bool]:
        """Record an instruction; returns the earlier ones it must wait for, and whether it reads what they wrote."""
        deps: dict[int, bool] = {}
        for a in reads:
            uid, box = a[0].uid, box_of(a)
            for other, at in self._writes.get(uid, ()):
                if overlap(box, other):
                    deps[at] = True
            self._reads.setdefault(uid, []).append((box, index))
        for a in writes:
            uid, box = a[0].uid, box_of(a)
            kept = []
            for entry in self._writes.get(uid, ()):
                if overlap(box, entry[0]):
                    deps.setdefault(entry[1], False)
                    if _covers(box, entry[0]):
                        continue
                kept.append(entry)
            kept.append((box, index))
            self._writes[uid] = kept
            readers = self._reads.get(uid)
            if readers:
                left = []
                for entry in readers:
                    if entry[1] != index and overlap(box, entry[0]):
                        deps.setdefault(entry[1], False)
                        if _covers(box, entry[0]):
                            continue
                    left.append(entry)
                self._reads[uid] = left
        deps.pop(index, None)
        return deps
