"""The core a kernel is running on: allocation, the instruction trace, registers, and who is asking."""

import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .dtypes import DType, as_dtype
from .enums import Engine, MemoryRegion
from .errors import KernelError, fail
from .hardware import HW
from .rules import RULES, raise_broken, span_error
from .storage import ON_CHIP, Storage, StorageInfo
from .target import Target

if TYPE_CHECKING:
    from .programs import Launch
    from .tensor import Access, Tensor

_local = threading.local()


class Instr(NamedTuple):
    """One executed instruction.

    Attributes:
        op: Instruction name.
        engine: Engine it runs on; for DMA, the queue that triggers it.
        n: Elements a partition that set its length.
        reads, writes: Memory touched.
        attrs: What else its cost depends on (see ``cost``).
        name: The kernel's name for it.
    """

    op: str
    engine: Engine
    n: int
    reads: "tuple[Access, ...]"
    writes: "tuple[Access, ...]"
    attrs: dict[str, Any]
    name: str | None


_NO_ATTRS: dict[str, Any] = {}


class Core:
    """State of one physical core during a launch.

    Attributes:
        program_id, num_programs: SPMD position; ``num_programs`` is 1 without LNC2.
        rank, index: Its rank, and its number among all programs that this process runs.
        has_grid: The launch named an LNC degree.
        target, rules: What it compiles for, and the rules that holds it to.
        trace: Instructions in program order.
        loops: Numbers of the device loops that are running, outermost first; ``loop_count`` have begun.
        dynamic_dma: The first DMA whose address is known at run time alone; empty if there is none.
        events: Control flow that both cores of an LNC2 launch must share.
        collective: HBM tensors that collectives have touched, by uid: the instruction and its operand.
        scalar_regs, vector_regs: float32 [128] accumulation registers of ScalarE and VectorE.
        scalar_known, vector_known: bool [128], which of them hold a defined value.
    """

    def __init__(
        self, program_id: int, num_programs: int, has_grid: bool, launch: "Launch", rank: int, index: int
    ) -> None:
        self.program_id = program_id
        self.num_programs = num_programs
        self.rank = rank
        self.index = index
        self.has_grid = has_grid
        self.launch = launch
        self.target: Target = launch.target
        self.rules: frozenset[str] = launch.rules
        self.trace: list[Instr] = []
        self.events: list[tuple[Any, ...]] = []
        self.collective: dict[int, tuple[str, str]] = {}
        self.scalar_regs = np.zeros(HW.partitions, dtype=np.float32)
        self.vector_regs = np.zeros(HW.partitions, dtype=np.float32)
        self.scalar_known = np.ones(HW.partitions, dtype=np.bool_)
        self.vector_known = np.ones(HW.partitions, dtype=np.bool_)
        self.rng = np.random.default_rng(0)
        self.names: set[str] = set()
        self.shared_count = 0
        self.meetings = 0
        self.loops: list[int] = []
        self.loop_count = 0
        self.dynamic_dma = ""
        self.placed: list[weakref.ref[Storage]] = []

    def allocate(
        self, shape: Sequence[int], dtype: Any, buffer: MemoryRegion, name: str, address: tuple[int, int] | None
    ) -> "Tensor":
        """``nl.ndarray``; see :class:`~.tensor.Tensor`."""
        from .tensor import Tensor

        if not isinstance(buffer, MemoryRegion):
            fail("ndarray", "buffer", f"must be nl.sbuf, nl.psum, nl.hbm or nl.shared_hbm, not {buffer!r}")
        try:
            kind = as_dtype(dtype)
        except TypeError as error:
            fail("ndarray", "dtype", str(error))
        if isinstance(shape, int):
            shape = (shape,)
        for s in shape:
            if isinstance(s, bool) or not isinstance(s, (int, np.integer)) or s < 1:
                fail("ndarray", "shape", f"{tuple(shape)} must be positive integers known at compile time")
        dims = tuple(int(s) for s in shape)
        if buffer in ON_CHIP:
            self._check_on_chip(dims, kind, buffer, address)
        if name:
            if name in self.names:
                fail("ndarray", "name", f"'{name}' is already taken; names are unique")
            self.names.add(name)
        if buffer is MemoryRegion.shared_hbm:
            return self.launch.shared_tensor(self, dims, kind, name)
        storage = Storage(dims, kind, buffer, name, self.program_id)
        storage.info.loop = self.loops[-1] if self.loops else 0
        if address is not None:
            storage.info.base_row, storage.info.address = int(address[0]), int(address[1])
            self.placed.append(weakref.ref(storage))
        return Tensor.whole(storage)

    def _check_on_chip(
        self, dims: tuple[int, ...], kind: DType, buffer: MemoryRegion, address: tuple[int, int] | None
    ) -> None:
        if len(dims) < 2 and dims != (1,):
            fail("ndarray", "shape", f"{dims}: a tensor on chip has a partition dimension and a free dimension")
        if dims[0] > HW.partitions:
            fail("ndarray", "shape", f"{dims}: {dims[0]} partitions, there are {HW.partitions}")
        row = int(np.prod(dims[1:], dtype=np.int64)) * kind.itemsize
        limit = HW.sbuf_bytes if buffer is MemoryRegion.sbuf else HW.psum_banks * HW.psum_bank_bytes
        at = 0
        if address is not None:
            if len(address) != 2:
                fail("ndarray", "address", f"must be (first partition, byte offset), not {address!r}")
            at = int(address[1])
            if address[0] + dims[0] > HW.partitions:
                fail("ndarray", "address", f"partitions {address[0]}..{address[0] + dims[0]} of {HW.partitions}")
            if buffer is MemoryRegion.psum and at % HW.psum_bank_bytes:
                fail("ndarray", "address", f"byte {at} is not the beginning of a {HW.psum_bank_bytes}-byte PSUM bank")
        if buffer is MemoryRegion.psum and row > HW.psum_bank_bytes:
            refuse("psum-tile", "ndarray", "shape", f"{dims} of {kind} takes {row} bytes a partition")
        if at + row > limit:
            fail("ndarray", "shape", f"{dims} of {kind} needs {at + row} bytes a partition, {buffer.value} has {limit}")

    def record(
        self,
        op: str,
        engine: Engine,
        n: int,
        reads: "tuple[Access, ...]",
        writes: "tuple[Access, ...]",
        attrs: dict[str, Any] = _NO_ATTRS,
        name: str | None = None,
    ) -> int:
        """Append an instruction to the trace and note that it touches its allocations; returns its position."""
        at = len(self.trace)
        if self.loop_count:
            self._check_loops(op, (*reads, *writes))
        for access in reads:
            access[0].last = at
            if access[0].buffer is MemoryRegion.psum:
                access[0].consumed.append(access)
        for access in writes:
            info = access[0]
            if info.first < 0:
                info.first = at
            info.last = at
            if info.address is not None and not info.owns:
                self._take_over(info)
        self.trace.append(Instr(op, engine, n, reads, writes, attrs, name))
        return at

    def _check_loops(self, op: str, touched: "tuple[Access, ...]") -> None:
        loop = self.loops[-1] if self.loops else 0
        for access in touched:
            info = access[0]
            if info.buffer is MemoryRegion.psum and info.loop != loop:
                refuse("psum-loop", op, info.name, "is touched outside the device loop that it was allocated in")

    def _take_over(self, info: StorageInfo) -> None:
        """``info`` was written: whatever the kernel placed over the same bytes before is lost."""
        info.owns = True
        at = info.address or 0
        alive = []
        for ref in self.placed:
            storage = ref()
            if storage is None:
                continue
            alive.append(ref)
            other = storage.info
            if other is info or other.buffer is not info.buffer or other.first < 0 or not other.owns:
                continue
            start = other.address or 0
            low, high = max(at, start), min(at + info.row_bytes, start + other.row_bytes)
            top = max(info.base_row, other.base_row)
            bottom = min(info.base_row + info.rows, other.base_row + other.rows)
            if low < high and top < bottom:
                other.owns = False
                storage.forget(top - other.base_row, bottom - other.base_row, low - start, high - start)
        self.placed = alive

    def copy_into(self, dst: "Tensor", value: Any) -> None:
        """``t[...] = value``: a copy by whichever instruction reaches both sides."""
        from . import isa
        from .tensor import Tensor

        if not isinstance(value, Tensor):
            fail("setitem", dst.name, f"only a tensor can be assigned, not {type(value).__name__}")
        if dst.on_chip and value.on_chip:
            isa.tensor_copy(dst, value)
        else:
            isa.dma_copy(dst, value)


def current(what: str) -> Core:
    """The core running the calling kernel.

    Raises:
        KernelError: called outside a kernel.
    """
    core: Core | None = getattr(_local, "core", None)
    if core is None:
        raise KernelError(what, "", "called outside a kernel")
    return core


def core_or_none() -> Core | None:
    """The core running the calling kernel, if any."""
    return getattr(_local, "core", None)


def refuse(rule_id: str, instruction: str, operand: str, detail: str) -> None:
    """A rule of :data:`~.rules.RULES` is broken: raise, if the running launch enforces it.

    Raises:
        RuleError: with ``detail``, the rule's remedy and its error code.
    """
    core = core_or_none()
    if core is not None and rule_id in core.rules:
        raise_broken(RULES[rule_id], core.target, instruction, operand, detail)


def check_span(name: str) -> None:
    """Refuse a function or method that the running launch's target lacks."""
    core = core_or_none()
    if core is not None and "sdk-api" in core.rules:
        wrong = span_error(name, core.target)
        if wrong:
            refuse("sdk-api", name, "", wrong)


def enter(core: Core | None) -> None:
    """Make ``core`` the calling thread's core."""
    _local.core = core


def scalar_value(ins: str, operand: str, source: Any) -> int:
    """Integer held by a register or by a one-element integer SBUF tensor."""
    from .registers import Register
    from .tensor import Tensor

    if isinstance(source, Register):
        if source.frozen:
            refuse("loop-register", ins, f"{operand}.scalar_offset", "is the register of a loop")
        return source.value
    if isinstance(source, Tensor):
        if source.size != 1 or not source.dtype.is_int:
            fail(ins, operand, f"scalar_offset must be a (1, 1) integer tensor, not {source!r}")
        if source.offset or source.storage.info.row_bytes != source.dtype.itemsize:
            refuse(
                "index-tile", ins, f"{operand}.scalar_offset",
                f"lies at element {source.offset} of '{source.name}' {source.storage.shape}",
            )  # fmt: skip
        source.check_defined(ins, f"{operand}.scalar_offset")
        return int(source.array.reshape(-1)[0])
    return fail(ins, operand, f"scalar_offset must be a register or a (1, 1) tensor, not {type(source).__name__}")
