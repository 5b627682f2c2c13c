"""Launching a kernel, on one rank or several: ``nki.jit``, ``nki.simulate``, ``ranks``."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import context
from .across import current_across
from .errors import KernelError
from .programs import Launch
from .target import Target


def run(
    kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], target: Target | None = None, ranks: int = 1
) -> tuple[Any, Launch]:
    """Run a kernel (``k``, ``k[2]`` or a plain function) and return (results, launch with its traces).

    Args:
        target: What to compile for; None: what :func:`~.target.compiling_for` says.
        ranks: The kernel runs on that many ranks, all with these arguments: one is computed, and its results returned.
            Inside :func:`~.across.running_across` it is this process's rank, among those of all processes.
    """
    fn, lnc = _parts(kernel)
    across = current_across()
    launch = (
        Launch(lnc, target, ranks, alike=True) if across is None else Launch(lnc, target, across.world, across=across)
    )
    return launch.run(fn, [(args, kwargs)])[0], launch


def run_ranks(
    kernel: Any, arguments: Sequence[Sequence[Any]], same: dict[str, Any], target: Target | None = None
) -> tuple[list[Any], Launch]:
    """Run a kernel on ranks together and return (results a rank, launch with its traces).

    Args:
        arguments: Positional arguments, a sequence a rank.
        same: Keyword arguments of all ranks. An array here is every rank's own copy.

    Raises:
        KernelError: no ranks, or what differs between them is more than the values of arrays.
    """
    if not arguments:
        raise KernelError("ranks", "arguments", "is empty: give the arguments of each rank")
    fn, lnc = _parts(kernel)
    launch = Launch(lnc, target, len(arguments))
    return launch.run(fn, [(tuple(args), same) for args in arguments]), launch


def ranks(kernel: Any, target: Target | None = None) -> Callable[..., list[Any]]:
    """``ranks(kernel[2])((x0, w0), (x1, w1), eps=1e-6)``: the ranks of a tensor-parallel group run together.

    Each positional argument holds those of a rank, keyword arguments are every rank's; returns a list of their results.
    The ranks run one program: only the values of arrays may differ.
    """
    return lambda *arguments, **same: run_ranks(kernel, arguments, same, target)[0]


def _parts(kernel: Any) -> tuple[Callable[..., Any], int | None]:
    bound = kernel if isinstance(kernel, (Kernel, BoundKernel)) else Kernel(kernel)
    return (bound.func, None) if isinstance(bound, Kernel) else (bound.kernel.func, bound.lnc)


class Kernel:
    """A function decorated with ``nki.jit``. ``kernel(...)`` runs it, ``kernel[lnc](...)`` on 1 or 2 cores."""

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func: Callable[..., Any] = func.func if isinstance(func, Kernel) else func
        functools.update_wrapper(self, self.func)

    def __getitem__(self, lnc: Any) -> "BoundKernel":
        if isinstance(lnc, (bool, np.bool_)) or not isinstance(lnc, (int, np.integer)) or lnc not in (1, 2):
            raise KernelError(self.func.__name__, "", f"kernel[lnc] takes 1 or 2, not {lnc!r}")
        return BoundKernel(self, int(lnc))

    def with_schedule(self, schedule: Any) -> "Kernel":
        """Scheduling hints change no result; the kernel itself."""
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if context.core_or_none() is not None:
            return self.func(*args, **kwargs)
        return run(self, args, kwargs)[0]


class BoundKernel:
    """A kernel with its LNC degree."""

    def __init__(self, kernel: Kernel, lnc: int) -> None:
        self.kernel = kernel
        self.lnc = lnc
        self.__name__ = kernel.func.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return run(self, args, kwargs)[0]


def jit(fn: Callable[..., Any] | None = None, **options: Any) -> Any:
    """``@nki.jit`` or ``@nki.jit(...)``. ``mode`` is ignored, as in NKI 0.3; ``platform_target`` is an error there."""
    if "platform_target" in options:
        raise KernelError("nki.jit", "platform_target", "is no longer accepted")
    if fn is None:
        return jit
    return Kernel(fn)


def simulate(kernel: Any, target: Target | None = None) -> Callable[..., Any]:
    """``nki.simulate(kernel)(...)``: run on CPU, compiled for ``target`` if one is given."""
    if target is not None:
        return lambda *args, **kwargs: run(kernel, args, kwargs, target)[0]
    return kernel if isinstance(kernel, (Kernel, BoundKernel)) else Kernel(kernel)
