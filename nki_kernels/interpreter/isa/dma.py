"""DMA: copies, transposes and sums between HBM and SBUF. PSUM is out of its reach."""

from typing import Any

import numpy as np

from .. import context
from ..context import refuse
from ..dtypes import int32, round_to, to_f32, uint32
from ..enums import DgeMode, Engine, MemoryRegion, OobMode, require_enum
from ..errors import fail
from ..hardware import HW
from ..operands import check_not_packed
from ..races import check_read, note_write
from ..tensor import Access, Tensor

_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}


def _side(ins: str, role: str, t: Any) -> Tensor:
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


def _rows(ins: str, role: str, t: Tensor) -> tuple[np.ndarray, np.ndarray]:
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


def _flat(t: Tensor) -> np.ndarray:
    return t.storage.raw.view(t.dtype.numpy)


def _flat_defined(t: Tensor) -> np.ndarray | None:
    t._fine()
    if t.storage.defined is None:
        return None
    return t.storage.defined.reshape(-1, t.dtype.itemsize // t.storage.unit)


def _cast(ins: str, values: np.ndarray, src: Tensor, dst: Tensor) -> np.ndarray:
    if src.dtype is dst.dtype or src.dtype.numpy == dst.dtype.numpy:
        return values
    check_not_packed(ins, "src", src.dtype)
    check_not_packed(ins, "dst", dst.dtype)
    return round_to(to_f32(values), dst.dtype)


def dma_copy(
    dst: Tensor,
    src: Tensor,
    priority: Any = None,
    oob_mode: Any = OobMode.error,
    dge_mode: Any = DgeMode.unknown,
    engine: Any = Engine.unknown,
    name: str | None = None,
) -> None:
    """``dst = src`` between HBM and SBUF in any combination; elements in row-major order, types cast through float32.

    Either side may have a ``vector_offset`` (rows by index; swdge) or a ``scalar_offset``. With ``oob_mode.skip``, rows
    whose index is out of bounds are left as they were. ``hwdge`` moves bytes: both types must be equal.
    """
    ins = "dma_copy"
    skip = require_enum(ins, "oob_mode", oob_mode, OobMode) is OobMode.skip
    mode = require_enum(ins, "dge_mode", dge_mode, DgeMode)
    queue = require_enum(ins, "engine", engine, Engine)
    dst, src = _side(ins, "dst", dst), _side(ins, "src", src)
    indirect = dst.vector_offset is not None or src.vector_offset is not None
    if src.size != dst.size:
        fail(ins, "src", f"has {src.size} elements {src.shape}, dst has {dst.size} {dst.shape}")
    if (src.on_chip or dst.on_chip) and src.shape[0] != dst.shape[0]:
        refuse("dma-leading", ins, "src", f"src is {src.shape}, dst is {dst.shape}")
    if src.scalar_offset is not None and dst.scalar_offset is not None and not (src.on_chip or dst.on_chip):
        refuse("dynamic-copy", ins, "dst", f"'{src.name}' and '{dst.name}' both have a dynamic offset")
    if mode is DgeMode.hwdge:
        if src.dtype is not dst.dtype:
            fail(ins, "src", f"hwdge moves bytes: src is {src.dtype}, dst is {dst.dtype}; use .view(dtype)")
        if indirect:
            fail(ins, "dge_mode", "hwdge has no indirect transfer; swdge has")
    if queue not in (Engine.unknown, Engine.gpsimd) and (
        mode is not DgeMode.hwdge or queue not in (Engine.sync, Engine.scalar)
    ):
        fail(ins, "engine", f"{queue.name}: only sync and scalar trigger a DMA, and only with dge_mode.hwdge")
    dynamic = dst.scalar_offset is not None or src.scalar_offset is not None
    if mode is DgeMode.none and (indirect or dynamic):
        fail(ins, "dge_mode", "none needs addresses known before the launch")
    reads: list[Access] = []
    writes: list[Access] = []
    offsets = [t.scalar_offset.access() for t in (src, dst) if isinstance(t.scalar_offset, Tensor)]
    for role, t, into in (("src", src, reads), ("dst", dst, writes)):
        if t.vector_offset is not None:
            reads.append(t.vector_offset.access())
            into.append(Tensor.whole(t.storage).access())
        elif t.scalar_offset is not None:
            t = t.resolved(ins, role)
            reach = t.offset + sum(s * (c - 1) for s, c in zip(t.strides, t.shape, strict=True))
            if reach >= t.storage.raw.size // t.dtype.itemsize:
                if skip:
                    return
                fail(ins, role, f"scalar_offset reaches element {reach} of '{t.name}' {t.storage.shape}")
            src, dst = (t, dst) if role == "src" else (src, t)
            into.append(t.access())
        else:
            into.append(t.access())
    if not indirect:
        # The transfer waits for its address; the data comes first, which is what a transfer's price looks at.
        reads += offsets
    core = context.current(ins)
    shared = core.num_programs == 2
    if indirect:
        _indirect_copy(ins, dst, src, skip)
    else:
        if shared and src.storage.info.core < 0:
            check_read(core, ins, "src", src)
        if src.storage.defined is not None:
            src.check_defined(ins, "src")
        _store(dst, _cast(ins, src.array, src, dst))
        if shared and dst.storage.info.core < 0:
            note_write(core, dst)
    if dynamic and mode is DgeMode.unknown:
        # Its address is known only at run time, so static descriptors are out.
        mode = DgeMode.hwdge if src.dtype is dst.dtype else DgeMode.swdge
    if queue is Engine.unknown:
        queue = Engine.gpsimd if indirect or mode is DgeMode.swdge else Engine.sync
    core.record(
        ins, queue, dst.size, tuple(reads), tuple(writes),
        {"dge": mode.name, "indirect": indirect, "bytes": dst.size * dst.dtype.itemsize}, name,
    )  # fmt: skip


def _store(dst: Tensor, values: np.ndarray) -> None:
    a = dst.array
    if values.shape != dst.shape:
        values = values.reshape(dst.shape)
    if 0 in dst.strides:
        last = tuple(slice(-1, None) if s == 0 else slice(None) for s in dst.strides)
        a[last] = values[last]
    else:
        a[...] = values
    if dst.storage.defined is not None:
        dst.mark_defined()


def _indirect_copy(ins: str, dst: Tensor, src: Tensor, skip: bool) -> None:
    ok: np.ndarray | None = None
    places: dict[str, np.ndarray] = {}
    for role, t in (("src", src), ("dst", dst)):
        if t.vector_offset is not None:
            places[role], good = _rows(ins, role, t)
            if not good.all() and not skip:
                bad = int(np.flatnonzero(~good)[0])
                value = int(t.vector_offset.array.reshape(-1)[bad])
                fail(ins, f"{role}.vector_offset", f"row index {value} (at {bad}) is out of bounds of '{t.name}'")
            ok = good if ok is None else ok & good
    assert ok is not None
    rows = ok.size
    if src.vector_offset is not None:
        known = _flat_defined(src)
        if known is not None and not known[places["src"][ok]].all():
            fail(ins, "src", f"gathers undefined elements of '{src.name}'")
        values = _flat(src)[places["src"][ok]]
    else:
        src.check_defined(ins, "src")
        values = src.array.reshape(rows, -1)[ok]
    values = _cast(ins, values, src, dst)
    if dst.vector_offset is not None:
        at = places["dst"][ok].reshape(-1)
        _flat(dst)[at] = values.reshape(-1)
        mask = _flat_defined(dst)
        if mask is not None:
            mask[at] = True
        return
    if dst.shape[0] != rows:
        dst = dst.reshape((rows, dst.size // rows))
    dst.array[ok] = values.reshape(-1, *dst.shape[1:])
    if ok.all():
        dst.mark_defined()
    elif dst.storage.defined is not None:
        dst._fine()
        dst._mask(dst.storage.defined)[ok] = True


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
    dst, src = _side(ins, "dst", dst), _side(ins, "src", src)
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
    reads = []
    if src.vector_offset is not None:
        values = _gathered(ins, src)
        reads.append(src.vector_offset.access())
        reads.append(Tensor.whole(src.storage).access())
    else:
        src = src.resolved(ins, "src")
        src.check_defined(ins, "src")
        values = src.array
        reads.append(src.access())
    _store(dst, values.transpose(order).copy())
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
    if len(shape) == 2:
        if shape[0] != 16:
            fail(ins, "src", f"hwdge needs shape[0] == 16 in 2-D, got {shape}")
    elif shape[0] not in (1, 2, 4, 8, 16) or (shape[0] * shape[-2]) % 16:
        fail(ins, "src", f"hwdge needs shape[0] in 1, 2, 4, 8, 16 and shape[0] * shape[-2] % 16 == 0, got {shape}")
    if shape[-1] > 128:
        fail(ins, "src", f"hwdge needs shape[-1] <= 128, got {shape}")


def _gathered(ins: str, src: Tensor) -> np.ndarray:
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
    if at.max() >= src.storage.raw.size // src.dtype.itemsize:
        fail(ins, "src.vector_offset", f"row index {rows.max()} is out of bounds of '{src.name}'")
    return _flat(src)[at].reshape(src.shape)


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
    sources = [_side(ins, f"srcs[{i}]", t) for i, t in enumerate(srcs)]
    dst = _side(ins, "dst", dst)
    if not 1 <= len(sources) <= HW.max_dma_sources:
        fail(ins, "srcs", f"{len(sources)} sources; 1 to {HW.max_dma_sources}")
    indirect = any(t.vector_offset is not None for t in (dst, *sources))
    if indirect and (len(sources) != 2 or not unique_indices):
        fail(ins, "srcs", "an indirect sum takes exactly two sources and unique indices")
    core = context.current(ins)
    total: np.ndarray | None = None
    reads = []
    for i, t in enumerate(sources):
        if t.size != dst.size:
            fail(ins, f"srcs[{i}]", f"has {t.size} elements {t.shape}, dst has {dst.size} {dst.shape}")
        if t.vector_offset is not None:
            at, good = _rows(ins, f"srcs[{i}]", t)
            if not good.all() and not skip:
                fail(ins, f"srcs[{i}].vector_offset", f"a row index is out of bounds of '{t.name}'")
            part = np.zeros(at.shape, dtype=np.float32)
            part[good] = to_f32(_flat(t)[at[good]])
            reads += [t.vector_offset.access(), Tensor.whole(t.storage).access()]
        else:
            t = t.resolved(ins, f"srcs[{i}]")
            t.check_defined(ins, f"srcs[{i}]")
            part = to_f32(t.array)
            reads.append(t.access())
        flat = part.reshape(-1)
        total = flat.copy() if total is None else total + flat
    assert total is not None
    values = round_to(total, dst.dtype)
    if dst.vector_offset is not None:
        at, good = _rows(ins, "dst", dst)
        if not good.all() and not skip:
            fail(ins, "dst.vector_offset", f"a row index is out of bounds of '{dst.name}'")
        _flat(dst)[at[good]] = values.reshape(at.shape)[good]
        mask = _flat_defined(dst)
        if mask is not None:
            mask[at[good].reshape(-1)] = True
        reads.append(dst.vector_offset.access())
        written = Tensor.whole(dst.storage).access()
    else:
        dst = dst.resolved(ins, "dst")
        _store(dst, values)
        written = dst.access()
    core.record(
        ins, Engine.gpsimd if indirect else Engine.sync, dst.size, tuple(reads), (written,),
        {"dge": "swdge" if indirect else "none", "indirect": indirect,
         "bytes": sum(t.size * t.dtype.itemsize for t in sources)}, name,
    )  # fmt: skip
