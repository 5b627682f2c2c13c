"""Launching a kernel: arguments in, one or two programs run, results out. ``nki.jit`` and ``nki.simulate``."""

import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from . import context
from .arguments import Arguments
from .capacity import check_capacity, check_length
from .context import Core
from .dtypes import DType
from .enums import MemoryRegion
from .errors import DivergenceError, KernelError, UndefinedReadError, fail
from .rules import RULES, raise_broken, rules_of
from .storage import Storage
from .target import Target, current_target
from .tensor import Tensor


class _Abort(BaseException):
    """Ends a program because the other one failed."""


class Launch:
    """One run of a kernel on one or two cores. The two never run at the same time: they take turns at each rendezvous,
    so a run is repeatable.

    Attributes:
        lnc: Programs, 1 or 2.
        target: What it is compiled for.
        cores: Their state and traces, after the run.
    """

    def __init__(self, lnc: int | None, target: Target | None = None) -> None:
        self.lnc = lnc or 1
        self.target = target or current_target()
        self.rules = rules_of(self.target)
        self.cores = [Core(i, self.lnc, lnc is not None, self) for i in range(self.lnc)]
        self._shared: list[Storage] = []
        self._posts: list[dict[int, tuple[Any, Any]]] = []
        self._arrived = [0] * self.lnc
        self._turn = [threading.Semaphore(0) for _ in range(self.lnc)]
        self._done = [False] * self.lnc
        self._errors: list[BaseException | None] = [None] * self.lnc

    def shared_tensor(self, core: Core, dims: tuple[int, ...], kind: DType, name: str) -> Tensor:
        """The next shared HBM allocation; the n-th one of both programs is the same memory."""
        at = core.shared_count
        core.shared_count += 1
        if at == len(self._shared):
            self._shared.append(Storage(dims, kind, MemoryRegion.shared_hbm, name, -1))
        storage = self._shared[at]
        if storage.shape != dims or storage.dtype is not kind:
            raise DivergenceError(
                "ndarray", name,
                f"shared HBM tensor {at} is {dims} {kind} here, {storage.shape} {storage.dtype} on the other core",
            )  # fmt: skip
        return Tensor.whole(storage)

    def rendezvous(self, core: Core, key: tuple[Any, ...], payload: Any) -> Any:
        """Meet the other program; returns its payload.

        Raises:
            DivergenceError: it is at another rendezvous, or has ended.
        """
        me, other = core.program_id, 1 - core.program_id
        at = self._arrived[me]
        self._arrived[me] += 1
        if at == len(self._posts):
            self._posts.append({})
        self._posts[at][me] = (key, payload)
        if other not in self._posts[at]:
            if not self._done[other]:
                self._turn[other].release()
                self._turn[me].acquire()
            if any(self._errors):
                raise _Abort
            if other not in self._posts[at]:
                raise DivergenceError(str(key[0]), "", f"core {me} waits at {key}, core {other} ended without it")
        core.meetings += 1
        theirs, value = self._posts[at][other]
        if theirs != key:
            raise DivergenceError(str(key[0]), "", f"core {me} is at {key}, core {other} at {theirs}")
        return value

    def run(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``fn`` and return its results as the caller's kind of array; inputs it wrote to are updated in place."""
        self._check_grid(fn)
        marshal = Arguments(fn, args, kwargs, shared=self.lnc == 2)
        if "nan-output" in self.rules:
            marshal.look_for_nan()
        results: list[Any] = [None] * self.lnc

        def program(core: Core) -> None:
            me = core.program_id
            self._turn[me].acquire()
            context.enter(core)
            try:
                if not any(self._errors):
                    results[me] = marshal.call()
                    self._check_results(results[me], marshal)
            except BaseException as error:
                if not isinstance(error, _Abort):
                    self._errors[me] = error
            finally:
                context.enter(None)
                self._done[me] = True
                if self.lnc == 2:
                    self._turn[1 - me].release()

        if self.lnc == 1:
            self._turn[0].release()
            program(self.cores[0])
        else:
            threads = [threading.Thread(target=program, args=(c,), daemon=True) for c in self.cores]
            for t in threads:
                t.start()
            self._turn[0].release()
            for t in threads:
                t.join()
        for error in self._errors:
            if error is not None:
                raise error
        self._check_same_control_flow(results)
        for storage in {id(s): s for s in [*self._returned(results[0]), *marshal.written()]}.values():
            text = Tensor.whole(storage).undefined_text()
            if text:
                raise UndefinedReadError("return", storage.info.name, f"holds {text}")
        self._check_handles(results[0], marshal)
        self._check_nan(results[0], marshal)
        for core in self.cores:
            check_length(core)
            check_capacity(core)
        marshal.write_back()
        return marshal.to_caller(results[0])

    def _check_grid(self, fn: Callable[..., Any]) -> None:
        rule, lnc = RULES["launch-grid"], self.target.lnc
        if lnc is not None and lnc != self.lnc and rule.id in self.rules:
            name = getattr(fn, "__name__", "kernel")
            raise_broken(rule, self.target, name, "", f"launched on {self.lnc} of a logical core's {lnc} cores")

    def _check_handles(self, value: Any, marshal: Arguments) -> None:
        """Every argument that was written is among the results."""
        returned = {s.info.uid for s in self._returned(value)}
        for storage in marshal.written():
            rule = RULES["returned-handles"]
            if storage.info.uid not in returned and rule.id in self.rules:
                writer = next(i for c in self.cores for i in c.trace if any(a[0] is storage.info for a in i.writes))
                detail = f"is written, first by {writer.name or writer.op}, and not returned"
                raise_broken(rule, self.target, "return", storage.info.name, detail)

    def _check_nan(self, value: Any, marshal: Arguments) -> None:
        rule = RULES["nan-output"]
        if rule.id not in self.rules or marshal.had_nan:
            return
        for storage in [*self._returned(value), *marshal.written()]:
            # 8-bit tensors also carry other types' bytes.
            wide = storage.dtype.is_float and storage.dtype.itemsize > 1
            if wide and bool(np.isnan(Tensor.whole(storage).array).any()):
                raise_broken(rule, self.target, "return", storage.info.name, "holds NaN, and no argument does")

    def _check_same_control_flow(self, results: list[Any]) -> None:
        if self.lnc == 1:
            return
        a, b = (c.events for c in self.cores)
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            x, y = (e[at] if at < len(e) else "nothing" for e in (a, b))
            raise DivergenceError("LNC2", "", f"dynamic control flow differs: core 0 does {x}, core 1 does {y}")
        one, two = ([s.info.uid for s in self._returned(r)] for r in results)
        if one != two:
            raise DivergenceError("return", "", "the two programs return different tensors")
        if self.cores[0].shared_count != self.cores[1].shared_count:
            raise DivergenceError("ndarray", "", "the two programs allocate different numbers of shared HBM tensors")

    def _check_results(self, value: Any, marshal: Arguments) -> None:
        if isinstance(value, Tensor):
            if value.buffer is not MemoryRegion.shared_hbm and not marshal.is_input(value):
                fail("return", value.name, f"is in {value.buffer.value}; a kernel's outputs must be nl.shared_hbm")
        elif isinstance(value, (tuple, list)):
            for v in value:
                self._check_results(v, marshal)
        elif value is not None:
            fail("return", "", f"a kernel returns tensors, not {type(value).__name__}")

    def _returned(self, value: Any) -> list[Storage]:
        if isinstance(value, Tensor):
            return [value.storage]
        if isinstance(value, (tuple, list)):
            return [s for v in value for s in self._returned(v)]
        return []


def run(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], target: Target | None = None) -> tuple[Any, Launch]:
    """Run a kernel (``k``, ``k[2]`` or a plain function) and return (results, launch with its traces).

    Args:
        target: What to compile for; None: what :func:`~.target.compiling_for` says.
    """
    bound = kernel if isinstance(kernel, (Kernel, BoundKernel)) else Kernel(kernel)
    fn, lnc = (bound.func, None) if isinstance(bound, Kernel) else (bound.kernel.func, bound.lnc)
    launch = Launch(lnc, target)
    return launch.run(fn, args, kwargs), launch


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
