"""What the DMA instructions share: their operands, rows by index, and how undefined elements go along."""

from typing import Any

import numpy as np

from .. import context
from ..context import refuse
from ..dtypes import int32, round_to, to_f32, uint32
from ..enums import MemoryRegion
from ..errors import fail
from ..operands import check_not_packed
from ..tensor import Tensor
from ..undefined import defined


def side(ins: str, role: str, t: Any) -> Tensor:
    if type(t) is not Tensor:
        fail(ins, role, f"must be a tensor, not {type(t).__name__}")
    if t.buffer is MemoryRegion.psum:
        fail(ins, role, "is in psum, which DMA cannot reach")
    if t.on_chip:
        row = t.row
        reach = t.offset % row + sum(s * (c - 1) for s, c in zip(t.strides[1:], t.shape[1:], strict=True))
        if reach >= row:
            fail(
                ins, role, f"pattern {t.get_pattern()} at offset {t.offset} runs past the {row} elements of a partition"
            )
    return t


def rows_of(ins: str, role: str, t: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Storage element of every element of a view with a vector offset, and which of its rows are in bounds."""
    assert t.vector_offset is not None
    index = t.vector_offset
    if index.buffer is not MemoryRegion.sbuf or index.dtype not in (int32, uint32):
        fail(ins, f"{role}.vector_offset", f"must be an int32 or uint32 SBUF tensor, not {index!r}")
    if t.on_chip:
        fail(ins, role, "vector_offset works on HBM only")
    index.check_defined(ins, f"{role}.vector_offset")
    rows = index.array.reshape(-1).astype(np.int64)
    if rows.size != t.shape[0]:
        fail(ins, f"{role}.vector_offset", f"has {rows.size} indices, the pattern has {t.shape[0]} rows")
    inner = np.zeros(1, dtype=np.int64)
    for s, c in zip(t.strides[1:], t.shape[1:], strict=True):
        inner = (inner[:, None] + s * np.arange(c)[None, :]).reshape(-1)
    at = t.offset + rows[:, None] * t.row_elems + inner[None, :]
    limit = t.storage.raw.size // t.dtype.itemsize
    return at, (rows >= 0) & (at.max(axis=1) < limit) & (at.min(axis=1) >= 0)


def flat(t: Tensor) -> np.ndarray:
    return t.storage.raw.view(t.dtype.numpy)


def flat_defined(t: Tensor) -> np.ndarray | None:
    t._fine()
    if t.storage.defined is None:
        return None
    return t.storage.defined.reshape(-1, t.dtype.itemsize // t.storage.unit)


def cast(ins: str, values: np.ndarray, src: Tensor, dst: Tensor) -> np.ndarray:
    if src.dtype is dst.dtype or src.dtype.numpy == dst.dtype.numpy:
        return values
    check_not_packed(ins, "src", src.dtype)
    check_not_packed(ins, "dst", dst.dtype)
    return round_to(to_f32(values), dst.dtype)


def store(dst: Tensor, values: np.ndarray, fine: np.ndarray | None) -> None:
    """Write ``values``, of which ``fine``, of their size, are defined (None: all)."""
    a = dst.array
    if values.shape != dst.shape:
        values = values.reshape(dst.shape)
    if 0 in dst.strides:
        last = tuple(slice(-1, None) if s == 0 else slice(None) for s in dst.strides)
        a[last] = values[last]
    else:
        a[...] = values
    if fine is not None:
        dst.set_defined(fine)
    elif dst.storage.defined is not None:
        dst.mark_defined()


def gathered_known(ins: str, dst: Tensor, src: Tensor, at: np.ndarray) -> np.ndarray | None:
    """Where elements ``at`` of the source's storage are defined, of ``at``'s shape; None if all are."""
    flat = flat_defined(src)
    fine = None if flat is None else flat[at].all(axis=-1)
    if fine is None or fine.all():
        return None
    defined(ins, dst, "src", Tensor.whole(src.storage))
    return fine


def check_scatter(ins: str, at: np.ndarray, values: np.ndarray) -> None:
    """Refuse a scatter that gives an element of the storage two values."""
    if "scatter-twice" not in context.current(ins).rules:
        return
    order = np.argsort(at, kind="stable")
    same = at[order][1:] == at[order][:-1]
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")[order]
    clash = same & (bits[1:] != bits[:-1])
    if clash.any():
        refuse("scatter-twice", ins, "dst.vector_offset", f"{int(clash.sum())} elements get two values")


def mark_flat(dst: Tensor, at: np.ndarray, fine: np.ndarray | None) -> None:
    """Elements ``at`` of the destination's storage have been written; ``fine`` of them are defined (None: all)."""
    if fine is not None and dst.storage.defined is None:
        dst.storage.defined = np.ones(dst.storage.raw.size // dst.storage.unit, dtype=np.bool_)
    mask = flat_defined(dst)
    if mask is not None:
        mask[at] = True if fine is None else fine.reshape(-1, 1)
