"""Shared HBM between the two cores: data that one core reads must have been written before their last rendezvous."""

from typing import TYPE_CHECKING

import numpy as np

from .context import refuse
from .errors import KernelError

if TYPE_CHECKING:
    from .context import Core
    from .tensor import Tensor


class RaceError(KernelError):
    """A core read what the other wrote with no rendezvous in between."""


def note_write(core: "Core", t: "Tensor") -> None:
    """Record that ``core`` wrote ``t`` now. Transfers by index are not tracked."""
    storage = t.storage
    if storage.writer is None:
        storage.writer = np.zeros(storage.raw.size // storage.dtype.itemsize, dtype=np.int32)
    _marks(t)[...] = 2 * core.meetings + core.program_id + 2


def check_overwrite(core: "Core", ins: str, t: "Tensor", values: np.ndarray) -> None:
    """Refuse to give elements that the other core wrote since the last rendezvous another value."""
    if "written-twice" not in core.rules or t.storage.writer is None or t.dtype.itemsize != t.storage.dtype.itemsize:
        return
    marks = _marks(t)
    other = 2 * core.meetings + (1 - core.program_id) + 2
    theirs = (marks >= other) & ((marks & 1) == (other & 1))
    if theirs.any():
        kind = f"u{t.dtype.itemsize}"
        differs = np.ascontiguousarray(t.array).view(kind) != np.ascontiguousarray(values.reshape(t.shape)).view(kind)
        if (theirs & differs).any():
            core_id = 1 - core.program_id
            refuse(
                "written-twice",
                ins,
                "dst",
                f"'{t.name}' has other values from core {core_id} since the last rendezvous",
            )


def check_read(core: "Core", ins: str, operand: str, t: "Tensor") -> None:
    """Refuse to read what the other core wrote since the last rendezvous.

    The two programs take turns here, so the value read would be right; on the device it may not be there yet.
    """
    if t.storage.writer is None:
        return
    marks = _marks(t)
    other = 2 * core.meetings + (1 - core.program_id) + 2
    if bool(((marks >= other) & ((marks & 1) == (other & 1))).any()):
        raise RaceError(
            ins, operand,
            f"reads '{t.name}', which core {1 - core.program_id} wrote with no core_barrier or sendrecv since",
        )  # fmt: skip


def _marks(t: "Tensor") -> np.ndarray:
    writer = t.storage.writer
    assert writer is not None
    if t.dtype.itemsize != t.storage.dtype.itemsize:
        return writer
    return np.ndarray(
        t.shape, np.int32, buffer=writer.data, offset=t.offset * 4, strides=[s * 4 for s in t.strides]
    )  # fmt: skip
