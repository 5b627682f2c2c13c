"""An interpreter for NKI kernels: runs them on CPU, refuses what the hardware would refuse, and prices them."""

from .context import moves_carry_undefined
from .errors import CapacityError, DivergenceError, KernelError, NotSimulatedError, UndefinedReadError
from .install import install, uninstall
from .launch import jit, simulate
from .races import RaceError
from .report import Report, cost_table, profile

__all__ = [
    "CapacityError",
    "DivergenceError",
    "KernelError",
    "NotSimulatedError",
    "RaceError",
    "Report",
    "UndefinedReadError",
    "cost_table",
    "install",
    "jit",
    "moves_carry_undefined",
    "profile",
    "simulate",
    "uninstall",
]
