"""Memory of the simulated device: one object an allocation, with the record of what has been written."""

from itertools import count
from typing import Any

import numpy as np

from .dtypes import DType
from .enums import MemoryRegion

_uids = count()
ON_CHIP = (MemoryRegion.sbuf, MemoryRegion.psum)


class StorageInfo:
    """What the schedule and the capacity check must know about an allocation after its data is gone.

    Attributes:
        uid: Unique number.
        buffer: Where it lives.
        name: The kernel's name for it, or a made-up one.
        row_bytes: Bytes a partition on chip; bytes of one index of dimension 0 in HBM.
        rows: Partitions on chip; size of dimension 0 in HBM.
        base_row: First partition, from ``address``.
        address: Byte offset in the partition, if the kernel chose it.
        core: Core that allocated it (-1: visible to both).
        owns: Its address has not been written through another tensor since it was last written.
        consumed: PSUM only: what has been read of it since a matmul last began a sum there.
        loop: Number of the device loop that it was allocated in, 0 outside of all.
        first, last: Positions in the core's trace of the first and last instruction that touched it; -1 if none.
    """

    __slots__ = (
        "address", "base_row", "buffer", "consumed", "core", "first", "last", "loop", "name", "owns", "row_bytes",
        "rows", "uid",
    )  # fmt: skip

    def __init__(self, buffer: MemoryRegion, name: str, rows: int, row_bytes: int, core: int) -> None:
        self.uid = next(_uids)
        self.buffer = buffer
        self.name = name or f"{buffer.value}.{self.uid}"
        self.rows = rows
        self.row_bytes = row_bytes
        self.base_row = 0
        self.address: int | None = None
        self.core = core
        self.consumed: list[Any] = []
        self.loop = 0
        self.first = -1
        self.last = -1
        self.owns = False


class Storage:
    """Bytes of one allocation.

    Attributes:
        raw: uint8 [nbytes], row-major; on chip a row is a partition.
        defined: bool per unit of ``unit`` bytes, or None when every element has been written.
        writer: Shared HBM on two cores only: who wrote each element and when (see ``races``).
        origin: Where undefined elements that were moved or computed into it came from; empty if none were.
        matmul_written: PSUM only: bool per element that a matmul has written since anything else did.
    """

    __slots__ = (
        "__weakref__", "defined", "dtype", "info", "matmul_written", "origin", "raw", "shape", "unit", "writer",
    )  # fmt: skip

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        buffer: MemoryRegion,
        name: str,
        core: int,
        data: np.ndarray | None = None,
    ) -> None:
        items = 1
        for s in shape:
            items *= s
        rows = shape[0] if shape else 1
        nbytes = items * dtype.itemsize
        self.shape = shape
        self.dtype = dtype
        self.info = StorageInfo(buffer, name, rows, nbytes // rows if rows else 0, core)
        self.unit = dtype.itemsize
        self.matmul_written: np.ndarray | None = None
        self.writer: np.ndarray | None = None
        self.origin = ""
        self.defined: np.ndarray | None
        if data is None:
            # Undefined elements travel with a mask; that their value is zero keeps their arithmetic quiet.
            self.raw = np.zeros(nbytes, dtype=np.uint8)
            self.defined = np.zeros(items, dtype=np.bool_)
        else:
            self.raw = np.array(data, order="C").reshape(-1).view(np.uint8)
            self.defined = None

    def forget(self, row0: int, row1: int, byte0: int, byte1: int) -> None:
        """Make a rectangle of rows and bytes undefined: other data has taken its place."""
        if self.defined is None:
            self.defined = np.ones(self.raw.size // self.unit, dtype=np.bool_)
        mask = self.defined.reshape(self.info.rows, -1)
        mask[row0:row1, byte0 // self.unit : -(-byte1 // self.unit)] = False

    def split_units(self, itemsize: int) -> None:
        """Make the record of written elements fine enough for elements of ``itemsize`` bytes."""
        if self.defined is not None and itemsize < self.unit:
            self.defined = np.repeat(self.defined, self.unit // itemsize)
        if self.matmul_written is not None and itemsize < self.unit:
            self.matmul_written = np.repeat(self.matmul_written, self.unit // itemsize)
        self.unit = min(self.unit, itemsize)
