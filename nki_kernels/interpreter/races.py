"""Shared HBM between the two cores: data that one core reads must have been written before their last rendezvous."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .errors import KernelError
from .rules import RULES, RuleError

if TYPE_CHECKING:
    from .context import Core
    from .storage import Storage
    from .tensor import Tensor


class RaceError(KernelError):
    """A core read what the other wrote with no rendezvous in between."""


def note_write(core: "Core", t: "Tensor") -> None:
    """Record that ``core`` wrote ``t`` now. Transfers by index are not tracked."""
    storage = t.storage
    if storage.writer is None:
        storage.writer = np.zeros(storage.raw.size // storage.dtype.itemsize, dtype=np.int32)
    _marks(t)[...] = 2 * core.meetings + core.program_id + 2


@dataclass(slots=True)
class Contest:
    """Elements of a tensor that one core wrote and then the other, with no rendezvous in between.

    Attributes:
        storage: The tensor's memory.
        left: uint8, all of it, with what the first core left there.
        contested: bool per element.
        error: What is wrong if the second core leaves anything else; made where it first wrote.
    """

    storage: "Storage"
    left: np.ndarray
    contested: np.ndarray
    error: RuleError


def note_overwrite(core: "Core", ins: str, t: "Tensor") -> None:
    """Keep what the other core wrote since the last rendezvous and ``core`` is about to write over.

    Either may be last on the device. It makes no difference where both leave the same, also if each has written other
    values there before: zeros, say, and then a scatter. So :func:`settle` compares when they meet.
    """
    if "written-twice" not in core.rules or t.storage.writer is None or t.dtype.itemsize != t.storage.dtype.itemsize:
        return
    marks = _marks(t)
    other = 2 * core.meetings + (1 - core.program_id) + 2
    theirs = (marks >= other) & ((marks & 1) == (other & 1))
    if not theirs.any():
        return
    contests = core.launch.contests[core.rank]
    contest = contests.get(t.storage.info.uid)
    if contest is None:
        detail = f"'{t.name}' has other values from core {1 - core.program_id} since the last rendezvous"
        rule = RULES["written-twice"]
        error = RuleError(rule, ins, "dst", rule.message(detail, core.target))
        contested = np.zeros(t.storage.writer.size, dtype=np.bool_)
        contest = Contest(t.storage, t.storage.raw.copy(), contested, error)
        contests[t.storage.info.uid] = contest
    itemsize = t.dtype.itemsize
    strides = [s * itemsize for s in t.strides]
    left = np.ndarray(t.shape, f"u{itemsize}", buffer=contest.left.data, offset=t.offset * itemsize, strides=strides)
    left[theirs] = t.array.view(left.dtype)[theirs]
    contested = np.ndarray(t.shape, np.bool_, buffer=contest.contested.data, offset=t.offset, strides=t.strides)
    contested[theirs] = True


def settle(contests: dict[int, Contest]) -> None:
    """Both cores of a rank have met, or ended: compare what each of them left.

    Raises:
        RuleError: rule written-twice.
    """
    for contest in contests.values():
        kind = f"u{contest.storage.dtype.itemsize}"
        differs = contest.left.view(kind) != contest.storage.raw.view(kind)
        if (differs & contest.contested).any():
            raise contest.error
    contests.clear()


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
