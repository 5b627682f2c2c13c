"""DMA copies between HBM and SBUF. PSUM is out of their reach."""

from typing import Any

import numpy as np

from .. import context
from ..context import refuse
from ..enums import DgeMode, Engine, OobMode, require_enum
from ..errors import fail
from ..races import check_read, note_overwrite, note_write
from ..tensor import Access, Tensor
from ..undefined import defined
from .dma_common import cast, check_scatter, flat, gathered_known, mark_flat, rows_of, side, store


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
    dst, src = side(ins, "dst", dst), side(ins, "src", src)
    indirect = dst.vector_offset is not None or src.vector_offset is not None
    if src.size != dst.size:
        fail(ins, "src", f"has {src.size} elements {src.shape}, dst has {dst.size} {dst.shape}")
    if (src.on_chip or dst.on_chip) and src.shape[0] != dst.shape[0]:
        memory, chip = (dst, src) if src.on_chip else (src, dst)
        flat = not memory.on_chip and len(memory.shape) == 1 and chip.shape[0] == 1
        refuse("dma-flat" if flat else "dma-leading", ins, "src", f"src is {src.shape}, dst is {dst.shape}")
    if src.scalar_offset is not None and dst.scalar_offset is not None and not (src.on_chip or dst.on_chip):
        refuse("dynamic-copy", ins, "dst", f"'{src.name}' and '{dst.name}' both have a dynamic offset")
    if dst.reshaped:
        refuse("reshaped-store", ins, "dst", f"is a reshape() of '{dst.name}' {dst.storage.shape}")
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
    outside = False
    offsets = [t.scalar_offset.access() for t in (src, dst) if isinstance(t.scalar_offset, Tensor)]
    for role, t, into in (("src", src, reads), ("dst", dst, writes)):
        if t.vector_offset is not None:
            reads.append(t.vector_offset.access())
            into.append(Tensor.whole(t.storage).access())
        elif t.scalar_offset is not None:
            t = t.resolved(ins, role)
            reach = t.offset + sum(s * (c - 1) for s, c in zip(t.strides, t.shape, strict=True))
            if t.offset < 0 or reach >= t.storage.raw.size // t.dtype.itemsize:
                if skip:
                    outside = True
                    continue
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
    moved = 0 if outside else dst.size
    if outside:
        writes.clear()  # It is issued all the same, and moves nothing.
    elif indirect:
        _indirect_copy(ins, dst, src, skip)
    else:
        if shared and src.storage.info.core < 0:
            check_read(core, ins, "src", src)
        values = cast(ins, src.array, src, dst)
        if shared and dst.storage.info.core < 0:
            note_overwrite(core, ins, dst)
            note_write(core, dst)
        store(dst, values, defined(ins, dst, "src", src))
    if dynamic or indirect:
        core.dynamic_dma = core.dynamic_dma or (name or ins)
    if dynamic and mode is DgeMode.unknown:
        # Its address is known only at run time, so static descriptors are out.
        mode = DgeMode.hwdge if src.dtype is dst.dtype else DgeMode.swdge
    if queue is Engine.unknown:
        queue = Engine.gpsimd if indirect or mode is DgeMode.swdge else Engine.sync
    core.record(
        ins, queue, moved, tuple(reads), tuple(writes),
        {"dge": mode.name, "indirect": indirect, "bytes": moved * dst.dtype.itemsize}, name,
    )  # fmt: skip


def _indirect_copy(ins: str, dst: Tensor, src: Tensor, skip: bool) -> None:
    ok: np.ndarray | None = None
    places: dict[str, np.ndarray] = {}
    for role, t in (("src", src), ("dst", dst)):
        if t.vector_offset is not None:
            places[role], good = rows_of(ins, role, t)
            if role == "src" and good.any() and not good.all():
                refuse(
                    "gather-bounds", ins, "src.vector_offset", f"{int((~good).sum())} of {good.size} are out of bounds"
                )
            if not good.all() and not skip:
                bad = int(np.flatnonzero(~good)[0])
                value = int(t.vector_offset.array.reshape(-1)[bad])
                fail(ins, f"{role}.vector_offset", f"row index {value} (at {bad}) is out of bounds of '{t.name}'")
            ok = good if ok is None else ok & good
    assert ok is not None
    rows = ok.size
    if src.vector_offset is not None:
        fine = gathered_known(ins, dst, src, places["src"][ok])
        values = flat(src)[places["src"][ok]]
    else:
        values = src.array.reshape(rows, -1)[ok]
        fine = defined(ins, dst, "src", src)
        fine = None if fine is None else fine.reshape(rows, -1)[ok]
    values = cast(ins, values, src, dst)
    if dst.vector_offset is not None:
        at = places["dst"][ok].reshape(-1)
        check_scatter(ins, at, values.reshape(-1))
        flat(dst)[at] = values.reshape(-1)
        mark_flat(dst, at, fine)
        return
    if dst.shape[0] != rows:
        dst = dst.reshape((rows, dst.size // rows))
    dst.array[ok] = values.reshape(-1, *dst.shape[1:])
    if ok.all() and fine is None:
        dst.mark_defined()
    elif dst.storage.defined is not None or fine is not None:
        held = dst.defined_mask()
        held = np.ones(dst.shape, dtype=np.bool_) if held is None else held.copy()
        held[ok] = True if fine is None else fine.reshape(-1, *dst.shape[1:])
        dst.set_defined(held)
