"""Undefined elements: they travel through instructions, and are an error where an address, branch or output reads them.

On the device what nobody wrote is whatever was there. A kernel that moves or computes on a whole tile of which only
some columns matter is right all the same, so an instruction passes undefined elements on, and the result is undefined
where any element that it depends on is.
"""

from typing import Any

import numpy as np

from .enums import ReduceCmd
from .errors import kernel_line
from .tensor import Tensor


def defined(ins: str, dst: Tensor, role: str, t: Any) -> np.ndarray | None:
    """Which elements of an operand are defined, [P, N]; None if all are, or it is not a tensor.

    Where some are not, ``dst`` will hold what came of them: it remembers where that was.
    """
    if not isinstance(t, Tensor) or t.storage.defined is None:
        return None
    mask = t.defined_mask()
    if mask is None:
        return None
    if not dst.storage.origin:
        line = kernel_line()
        dst.storage.origin = t.storage.origin or (
            f"{ins}: operand '{role}' reads {t.undefined_text()}" + (f" [{line}]" if line else "")
        )
    return mask.reshape(t.shape[0], -1)


def both(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    """Where both are defined; None is everywhere."""
    if a is None:
        return b
    return a if b is None else a & b


def known(ins: str, dst: Tensor, **operands: Any) -> np.ndarray | None:
    """Where the result of an instruction that works element by element is defined, for :func:`~.operands.write`.

    Args:
        dst: Its destination, [P, N].
        operands: Tensors by role, [P, N], or [P, 1] for a value a partition; of one with another number of elements
            the whole partition counts. Anything but a tensor is defined.
    """
    out: np.ndarray | None = None
    for role, t in operands.items():
        mask = defined(ins, dst, role, t)
        if mask is not None:
            out = both(out, mask if mask.shape[1] in (1, dst.N) else np.asarray(mask.all(axis=1, keepdims=True)))
    return out


def known_rows(ins: str, dst: Tensor, **operands: Any) -> np.ndarray | None:
    """Where a result that depends on the operands' whole partitions is defined, [P, 1]."""
    out = known(ins, dst, **operands)
    return None if out is None else np.asarray(np.all(out, axis=1, keepdims=True))


def chosen(where: np.ndarray, a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    """Where ``np.where(where, x, y)`` is defined, ``a`` and ``b`` being where x and y are."""
    if a is None and b is None:
        return None
    return np.where(where, True if a is None else a, True if b is None else b)


def fold_known(regs: np.ndarray, command: ReduceCmd, fine: np.ndarray | None, start: np.ndarray | None = None) -> None:
    """Which accumulation registers hold a defined value after a command.

    Args:
        regs: bool [P], changed in place.
        fine: Where what is folded is defined; it broadcasts to [P, N].
        start: [P, 1], where ``load_reduce``'s first value is.
    """
    rows = True if fine is None else fine.all(axis=1)
    if command is ReduceCmd.reset:
        regs[:] = True
    elif command is ReduceCmd.reduce:
        regs &= rows
    elif command is ReduceCmd.reset_reduce:
        regs[:] = rows
    elif command is ReduceCmd.load_reduce:
        regs[:] = rows if start is None else rows & start[:, 0]
