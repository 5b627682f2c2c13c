"""What the interpreter says when a kernel breaks a rule of the hardware or of the compiler."""

import os
import sys
from typing import NoReturn

_HERE = os.path.dirname(os.path.abspath(__file__))


class KernelError(Exception):
    """A kernel broke a rule. The message names the instruction, the operand and the rule, and the kernel's line.

    Attributes:
        instruction: Name of the instruction or API call, e.g. ``nc_matmul``.
        operand: Name of the operand at fault, e.g. ``stationary``; empty when the call as a whole is at fault.
        rule: The rule broken, in words, with the values that broke it.
    """

    def __init__(self, instruction: str, operand: str, rule: str) -> None:
        self.instruction = instruction
        self.operand = operand
        self.rule = rule
        where = kernel_line()
        subject = f"{instruction}: operand '{operand}'" if operand else instruction
        super().__init__(f"{subject}: {rule}" + (f" [{where}]" if where else ""))


class UndefinedReadError(KernelError):
    """An instruction read elements that nothing has written."""


class CapacityError(KernelError):
    """SBUF or PSUM is over capacity."""


class DivergenceError(KernelError):
    """The two programs of an LNC2 launch do not follow the same control flow."""


class NotSimulatedError(KernelError):
    """A documented instruction that this interpreter does not run."""


def fail(instruction: str, operand: str, rule: str) -> NoReturn:
    """Raise :class:`KernelError`."""
    raise KernelError(instruction, operand, rule)


def kernel_line() -> str:
    """File and line of the innermost frame outside the interpreter; empty if there is none."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if not os.path.abspath(name).startswith(_HERE):
            return f"{os.path.basename(name)}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""
