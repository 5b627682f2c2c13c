"""Scalar registers of an engine's sequencer, and the loops that run on them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import context
from .enums import Engine, MemoryRegion
from .errors import fail


class Register:
    """``VirtualRegister``: a 32-bit integer known only when the kernel runs.

    It may be a ``scalar_offset``, a loop bound or the condition of a ``while``; Python arithmetic on it does not
    compile. An induction variable is frozen.
    """

    __slots__ = ("frozen", "value")

    def __init__(self, value: int = 0, frozen: bool = False) -> None:
        self.value = value
        self.frozen = frozen

    def __bool__(self) -> bool:
        core = context.current("while")
        if core.target.traces:
            context.refuse("sdk-api", "while", "register", "a register's value is not known while a kernel is traced")
        core.events.append(("while", bool(self.value)))
        return bool(self.value)

    def _operator(self, *_: Any) -> Any:
        fail("operator", "register", "Python arithmetic, comparison or indexing with a register does not compile")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __floordiv__ = __mod__ = _operator
    __lt__ = __le__ = __gt__ = __ge__ = __int__ = __index__ = __neg__ = _operator


def register_alloc(x: int | None = None) -> Register:
    """A new register, holding ``x`` if given."""
    context.current("register_alloc")
    if x is not None and (isinstance(x, bool) or not isinstance(x, int)):
        fail("register_alloc", "x", f"must be an int or None, not {type(x).__name__}")
    return Register(0 if x is None else x)


def _target(ins: str, dst: Any) -> Register:
    if not isinstance(dst, Register):
        fail(ins, "dst", "must be a register")
    if dst.frozen:
        fail(ins, "dst", "a loop's induction register is frozen")
    return dst


def register_move(dst: Register, src: Any) -> None:
    """``dst = src``; ``src`` a register or an int."""
    core = context.current("register_move")
    if not isinstance(src, (int, Register)):
        fail("register_move", "src", f"must be an int or a register, not {type(src).__name__}")
    _target("register_move", dst).value = src.value if isinstance(src, Register) else src
    core.record("register_move", Engine.sync, 1, (), ())


def _one_element(ins: str, operand: str, t: Any) -> Any:
    from .tensor import Tensor

    if not isinstance(t, Tensor) or t.size != 1 or t.dtype.itemsize != 4:
        fail(ins, operand, "must be a tensor of exactly one 32-bit element")
    if t.buffer is MemoryRegion.psum:
        fail(ins, operand, "must be in SBUF or HBM")
    return t.resolved(ins, operand)


def register_load(dst: Register, src: Any) -> None:
    """``dst`` = the one element of ``src`` (SBUF or HBM, 32-bit)."""
    core = context.current("register_load")
    src = _one_element("register_load", "src", src)
    src.check_defined("register_load", "src")
    _target("register_load", dst).value = int(src.array.reshape(-1)[0])
    core.record("register_load", Engine.sync, 1, (src.access(),), ())


def register_store(dst: Any, src: Register) -> None:
    """The one element of ``dst`` = ``src``."""
    core = context.current("register_store")
    dst = _one_element("register_store", "dst", dst)
    if not isinstance(src, Register):
        fail("register_store", "src", "must be a register")
    dst.array[...] = src.value
    dst.mark_defined()
    core.record("register_store", Engine.sync, 1, (), (dst.access(),))


def _bound(ins: str, operand: str, value: Any) -> int:
    if isinstance(value, Register):
        return value.value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return fail(ins, operand, f"must be an int or a register, not {type(value).__name__}")


@contextmanager
def _device_loop(core: context.Core) -> Iterator[None]:
    core.loop_count += 1
    core.loops.append(core.loop_count)
    try:
        yield
    finally:
        core.loops.pop()


def dynamic_range(start: Any, stop: Any = None, step: int = 1) -> Iterator[Register]:
    """Loop in hardware; yields the frozen induction register. Bounds may be registers, the step may not."""
    context.check_span("dynamic_range")
    yield from _loop("dynamic_range", start, stop, step)


def _loop(ins: str, start: Any, stop: Any, step: int) -> Iterator[Register]:
    core = context.current(ins)
    lo, hi = (0, start) if stop is None else (start, stop)
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        fail(ins, "step", f"must be a positive int known at compile time, not {step!r}")
    first, last = _bound(ins, "start", lo), _bound(ins, "stop", hi)
    core.events.append(("dynamic_range", max(0, -(-(last - first) // step))))
    with _device_loop(core):
        for i in range(first, last, step):
            core.record("loop_iteration", Engine.sync, 1, (), ())
            yield Register(i, frozen=True)


def fori_loop(lower: Any, upper: Any, body_fun: Callable[[Register], Any], step: int = 1) -> None:
    """``for i in [lower, upper) step: body_fun(i)``; the body returns None and keeps state in tensors."""
    context.check_span("fori_loop")
    for i in _loop("fori_loop", lower, upper, step):
        if body_fun(i) is not None:
            fail("fori_loop", "body_fun", "must return None: carry state in tensors")


def while_loop(init: Any, body_fun: Callable[[Register], Register]) -> None:
    """Run ``body_fun`` while its last result (first: ``init``) is not zero."""
    core = context.current("while_loop")
    context.check_span("while_loop")
    reg = init if isinstance(init, Register) else Register(_bound("while_loop", "init", init))
    with _device_loop(core):
        while True:
            core.events.append(("while_loop", bool(reg.value)))
            if not reg.value:
                return
            core.record("loop_iteration", Engine.sync, 1, (), ())
            reg = body_fun(reg)
            if not isinstance(reg, Register):
                fail("while_loop", "body_fun", "must return the register that is the next condition")
