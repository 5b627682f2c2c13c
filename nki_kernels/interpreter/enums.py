"""Enumerations of ``nki.isa``. They are not integers: the compiler refuses a raw int in their place."""

from enum import Enum, IntEnum
from typing import TypeVar

from .errors import fail


class Engine(Enum):
    """Compute engines and the two queues that trigger DMA."""

    unknown = 0
    tensor = 1
    scalar = 2
    gpsimd = 3
    dma = 4
    vector = 5
    sync = 6


class ReduceCmd(Enum):
    """What an instruction does to its engine's accumulation registers."""

    idle = 0
    reset = 1
    reduce = 2
    reset_reduce = 3
    load_reduce = 4


class DgeMode(Enum):
    """Who makes DMA descriptors: the compiler (none), GpSimd (swdge) or the hardware (hwdge)."""

    unknown = 0
    swdge = 1
    hwdge = 2
    none = 3


class OobMode(Enum):
    """What an indirect DMA does with an index that is out of bounds."""

    error = 0
    skip = 1


class MatmulPerfMode(Enum):
    """Matmul modes; ``double_row`` feeds two fp8 rows a cycle."""

    none = "none"
    double_row = "double_row"


class NcVersion(IntEnum):
    """NeuronCore generations: gen3 is Trainium2. Ordered: later compilers compare them (0.3 takes only ==)."""

    gen2 = 2
    gen3 = 3
    gen4 = 4


class DmaEngine(Enum):
    """Which DMA carries a sendrecv."""

    dma = 1
    gpsimd_dma = 2


class MemoryRegion(Enum):
    """Where a tensor lives. ``nl.hbm`` is ``private_hbm``."""

    sbuf = "sbuf"
    psum = "psum"
    private_hbm = "private_hbm"
    shared_hbm = "shared_hbm"


E = TypeVar("E", bound=Enum)


def require_enum(ins: str, operand: str, value: object, kind: type[E]) -> E:
    """The value, if it is a member of ``kind``.

    Raises:
        KernelError: it is a raw int or anything else. A string is taken where the enum's values are strings, because
            library kernels pass ``perf_mode="double_row"``. A raw int is taken for ``dge_mode`` alone: the migration
            guide forbids raw ints, but AWS's norm kernels for the same release pass ``dge_mode=3``.
    """
    if isinstance(value, kind):
        return value
    if isinstance(value, str) and kind is MatmulPerfMode:
        return kind(value)
    if type(value) is int and kind is DgeMode:
        return kind(value)
    return fail(ins, operand, f"must be a member of nisa.{kind.__name__}, not {value!r}")
