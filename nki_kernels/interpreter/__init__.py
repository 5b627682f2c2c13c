"""An interpreter for NKI kernels: runs them on CPU, refuses what the hardware would refuse, and prices them."""

from .across import Across, running_across
from .errors import CapacityError, DivergenceError, KernelError, NotSimulatedError, UndefinedReadError
from .install import install, uninstall
from .launch import jit, ranks, simulate
from .price_list import PriceList
from .races import RaceError
from .report import Report, profile, profile_ranks
from .rules import RULES, Rule, RuleError
from .target import Target, compiling_for, current_target

__all__ = [
    "RULES",
    "Across",
    "CapacityError",
    "DivergenceError",
    "KernelError",
    "NotSimulatedError",
    "PriceList",
    "RaceError",
    "Report",
    "Rule",
    "RuleError",
    "Target",
    "UndefinedReadError",
    "compiling_for",
    "current_target",
    "install",
    "jit",
    "profile",
    "profile_ranks",
    "ranks",
    "running_across",
    "simulate",
    "uninstall",
]
