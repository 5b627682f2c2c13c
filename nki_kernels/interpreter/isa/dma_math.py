"""DMA that computes on the way: transposes and sums."""

from typing import Any

import numpy as np

from .. import context
from ..context import refuse
from ..dtypes import round_to, to_f32, uint32
from ..enums import DgeMode, Engine, OobMode, require_enum
from ..errors import fail
from ..hardware import HW
from ..tensor import Tensor
from ..undefined import both, defined
from .dma_common import check_scatter, flat, gathered_known, mark_flat, rows_of, side, store

_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}


def dma_transpose(
    dst: Tensor,
    src: Tensor,
    axes: Any = None,
    priority: Any = None,
    dge_mode: Any = DgeMode.unknown,
    oob_mode: Any = OobMode.error,
    name: str | None = None,
) -> None:
    """Transpose on the way: 2-D (1, 0), 3-D (2, 1, 0), 4-D (3, 1, 2, 0). Same type; dst has exactly that shape.

    With a ``vector_offset`` source (indices [n, m] uint32 in SBUF) row r of the result's last axis is
    ``src[indices.T.flatten()[r]]``.
    """
    ins = "dma_transpose"
    mode = require_enum(ins, "dge_mode", dge_mode, DgeMode)
    require_enum(ins, "oob_mode", oob_mode, OobMode)
    dst, src = side(ins, "dst", dst), side(ins, "src", src)
    nd = len(src.shape)
    if nd not in _AXES:
        fail(ins, "src", f"{nd} dimensions; 2 to 4")
    order = _AXES[nd] if axes is None else tuple(axes)
    if order != _AXES[nd]:
        fail(ins, "axes", f"{order} of {nd} dimensions; only {_AXES[nd]}")
    want = tuple(src.shape[a] for a in order)
    if dst.shape != want:
        fail(ins, "dst", f"shape is {dst.shape}, the transpose of {src.shape} by {order} is {want}")
    if dst.dtype is not src.dtype:
        fail(ins, "dst", f"must have src's type {src.dtype}, not {dst.dtype}")
    if mode is DgeMode.hwdge:
        _check_hwdge_transpose(ins, src)
    if src.scalar_offset is not None:
        refuse("dynamic-transpose", ins, "src", f"'{src.name}' has a dynamic offset")
    reads = []
    if src.vector_offset is not None:
        values, fine = _gathered(ins, dst, src)
        reads.append(src.vector_offset.access())
        reads.append(Tensor.whole(src.storage).access())
    else:
        src = src.resolved(ins, "src")
        values, fine = src.array, defined(ins, dst, "src", src)
        fine = None if fine is None else fine.reshape(src.shape)
        reads.append(src.access())
    store(dst, values.transpose(order).copy(), None if fine is None else fine.transpose(order))
    context.current(ins).record(
        ins, Engine.gpsimd if src.vector_offset is not None else Engine.sync, dst.size, tuple(reads), (dst.access(),),
        {"dge": mode.name, "indirect": src.vector_offset is not None, "transpose": True,
         "bytes": dst.size * dst.dtype.itemsize}, name,
    )  # fmt: skip


def _check_hwdge_transpose(ins: str, src: Tensor) -> None:
    shape = src.shape
    if src.dtype.itemsize != 2:
        fail(ins, "src", f"hwdge transposes 2-byte types, not {src.dtype}")
    if src.vector_offset is not None:
        fail(ins, "dge_mode", "hwdge has no indirect transfer; swdge has")
    if shape[0] != 16 or shape[-1] != 128:
        refuse("hwdge-transpose", ins, "src", f"is {shape}")
    if len(shape) == 2:
        if shape[0] != 16:
            fail(ins, "src", f"hwdge needs shape[0] == 16 in 2-D, got {shape}")
    elif shape[0] not in (1, 2, 4, 8, 16) or (shape[0] * shape[-2]) % 16:
        fail(ins, "src", f"hwdge needs shape[0] in 1, 2, 4, 8, 16 and shape[0] * shape[-2] % 16 == 0, got {shape}")
    if shape[-1] > 128:
        fail(ins, "src", f"hwdge needs shape[-1] <= 128, got {shape}")


def _gathered(ins: str, dst: Tensor, src: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
    index = src.vector_offset
    assert index is not None
    if src.dtype.itemsize != 2 or src.shape[-1] > 128 or src.shape[0] % 16:
        fail(ins, "src", f"an indirect transpose needs 2 bytes, shape[-1] <= 128, shape[0] % 16 == 0; got {src!r}")
    if index.dtype is not uint32:
        fail(ins, "src.vector_offset", f"must be uint32, not {index.dtype}")
    index.check_defined(ins, "src.vector_offset")
    rows = index.array.reshape(index.shape[0], -1).T.reshape(-1)[: src.shape[0]].astype(np.int64)
    inner = np.zeros(1, dtype=np.int64)
    for s, c in zip(src.strides[1:], src.shape[1:], strict=True):
        inner = (inner[:, None] + s * np.arange(c)[None, :]).reshape(-1)
    at = src.offset + rows[:, None] * src.row_elems + inner[None, :]
    inside = (rows >= 0) & (at.max(axis=1) < src.storage.raw.size // src.dtype.itemsize)
    if not inside.all():
        if inside.any():
            refuse(
                "gather-bounds", ins, "src.vector_offset", f"{int((~inside).sum())} of {rows.size} are out of bounds"
            )
        fail(ins, "src.vector_offset", f"row index {rows.max()} is out of bounds of '{src.name}'")
    fine = gathered_known(ins, dst, src, at)
    return flat(src)[at].reshape(src.shape), None if fine is None else fine.reshape(src.shape)


def dma_compute(
    dst: Tensor,
    srcs: Any,
    reduce_op: Any,
    scales: Any = None,
    unique_indices: bool = True,
    oob_mode: Any = OobMode.error,
    name: str | None = None,
) -> None:
    """``dst = sum(srcs)`` in float32 on the way; with a ``vector_offset`` on dst or on one source, a scatter or gather
    add of exactly two sources.

    Raises:
        KernelError: an operator other than add, scales other than 1, more than 16 sources.
    """
    ins = "dma_compute"
    skip = require_enum(ins, "oob_mode", oob_mode, OobMode) is OobMode.skip
    if getattr(reduce_op, "name", None) != "add":
        fail(ins, "reduce_op", f"must be nl.add, not {reduce_op!r}")
    if scales is not None and any(float(s) != 1.0 for s in scales):
        fail(ins, "scales", "must be None or all 1.0")
    sources = [side(ins, f"srcs[{i}]", t) for i, t in enumerate(srcs)]
    dst = side(ins, "dst", dst)
    if not 1 <= len(sources) <= HW.max_dma_sources:
        fail(ins, "srcs", f"{len(sources)} sources; 1 to {HW.max_dma_sources}")
    indirect = any(t.vector_offset is not None for t in (dst, *sources))
    if indirect and (len(sources) != 2 or not unique_indices):
        fail(ins, "srcs", "an indirect sum takes exactly two sources and unique indices")
    core = context.current(ins)
    total: np.ndarray | None = None
    fine: np.ndarray | None = None
    reads = []
    for i, t in enumerate(sources):
        if t.size != dst.size:
            fail(ins, f"srcs[{i}]", f"has {t.size} elements {t.shape}, dst has {dst.size} {dst.shape}")
        if t.vector_offset is not None:
            at, good = rows_of(ins, f"srcs[{i}]", t)
            if not good.all() and not skip:
                fail(ins, f"srcs[{i}].vector_offset", f"a row index is out of bounds of '{t.name}'")
            part = np.zeros(at.shape, dtype=np.float32)
            part[good] = to_f32(flat(t)[at[good]])
            there = gathered_known(ins, dst, t, at[good])
            if there is not None:
                mask = np.ones(at.shape, dtype=np.bool_)
                mask[good] = there
                fine = both(fine, mask.reshape(-1))
            reads += [t.vector_offset.access(), Tensor.whole(t.storage).access()]
        else:
            t = t.resolved(ins, f"srcs[{i}]")
            held = defined(ins, dst, f"srcs[{i}]", t)
            fine = both(fine, None if held is None else held.reshape(-1))
            part = to_f32(t.array)
            reads.append(t.access())
        line = part.reshape(-1)
        total = line.copy() if total is None else total + line
    assert total is not None
    values = round_to(total, dst.dtype)
    if dst.vector_offset is not None:
        at, good = rows_of(ins, "dst", dst)
        if not good.all() and not skip:
            fail(ins, "dst.vector_offset", f"a row index is out of bounds of '{dst.name}'")
        flat(dst)[at[good]] = values.reshape(at.shape)[good]
        check_scatter(ins, at[good].reshape(-1), values.reshape(at.shape)[good].reshape(-1))
        mark_flat(dst, at[good].reshape(-1), None if fine is None else fine.reshape(at.shape)[good])
        reads.append(dst.vector_offset.access())
        written = Tensor.whole(dst.storage).access()
    else:
        dst = dst.resolved(ins, "dst")
        store(dst, values, fine)
        written = dst.access()
    core.record(
        ins, Engine.gpsimd if indirect else Engine.sync, dst.size, tuple(reads), (written,),
        {"dge": "swdge" if indirect else "none", "indirect": indirect,
         "bytes": sum(t.size * t.dtype.itemsize for t in sources)}, name,
    )  # fmt: skip
