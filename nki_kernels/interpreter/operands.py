"""Checks that every instruction makes on its operands, and how their elements are read and written."""

from typing import Any

import numpy as np

from .context import refuse
from .dtypes import DType, float32, round_to, tfloat32, to_f32
from .enums import Engine, MemoryRegion, require_enum
from .errors import fail
from .hardware import HW
from .patterns import merged
from .storage import ON_CHIP
from .tensor import Tensor

SBUF = (MemoryRegion.sbuf,)
PSUM = (MemoryRegion.psum,)


def start_partition_error(start: int, count: int) -> str:
    """Why ``count`` partitions may not begin at ``start``; empty if they may.

    Rule: more than 64 partitions begin at 0; 33 to 64 at 0 or 64; 32 or fewer at 0, 32, 64 or 96 [Trainium architecture
    guide, partition access].
    """
    if count > 64:
        legal: tuple[int, ...] = (0,)
    elif count > 32:
        legal = (0, 64)
    else:
        legal = (0, 32, 64, 96)
    if start in legal:
        return ""
    return f"start partition {start} with {count} partitions; legal starts are {legal}"


def operand(ins: str, role: str, t: Any, buffers: tuple[MemoryRegion, ...] = ON_CHIP) -> Tensor:
    """An on-chip operand of a compute instruction, checked; its dynamic offset, if any, is applied.

    Sets ``P`` (partitions) and ``N`` (elements a partition) on the tensor returned.
    """
    if type(t) is not Tensor:
        fail(ins, role, f"must be a tensor, not {type(t).__name__}")
    if t.scalar_offset is not None:
        refuse("dynamic-sbuf", ins, role, f"'{t.name}' is addressed by a value of run time")
        t = t.resolved(ins, role)
    if t.buffer not in buffers:
        allowed = " or ".join(b.value for b in buffers)
        fail(ins, role, f"is in {t.buffer.value}, must be in {allowed}")
    if not t._checked:
        check_pattern(ins, role, t)
    return t


def check_pattern(ins: str, role: str, t: Tensor) -> None:
    """Partition and free limits of one operand of a compute instruction."""
    shape = t.shape
    parts = shape[0]
    n = 1
    for s in shape[1:]:
        n *= s
    t.P, t.N = parts, n
    if parts > HW.partitions:
        fail(ins, role, f"partition dimension {parts} exceeds maximum {HW.partitions}")
    wrong = start_partition_error(t.start_partition, parts)
    if wrong:
        fail(ins, role, wrong)
    row = t.row
    reach = t.offset % row if row else 0
    for s, c in zip(t.strides[1:], shape[1:], strict=True):
        reach += s * (c - 1) if s > 0 else 0
    if reach >= row:
        fail(ins, role, f"pattern {t.get_pattern()} at offset {t.offset} runs past the {row} elements of a partition")
    if parts > 1 and t.strides[0] != row:
        fail(ins, role, f"partition stride {t.strides[0]}, must be {row}: partitions are contiguous")
    free = merged(shape[1:], t.strides[1:])
    if len(free) > HW.max_free_dims:
        fail(ins, role, f"{len(free)} free dimensions after merging, maximum {HW.max_free_dims}")
    for stride, count in free:
        if count > HW.max_free_size:
            fail(ins, role, f"free size {count} exceeds maximum {HW.max_free_size}")
        if abs(stride) > HW.max_stride:
            fail(ins, role, f"stride {stride} exceeds maximum {HW.max_stride} elements")
    t._checked = True


def same_partitions(ins: str, role: str, t: Tensor, parts: int) -> None:
    """Refuse an operand whose partition count differs from the destination's."""
    if parts != t.P:
        fail(ins, role, f"has {t.P} partitions, must have {parts}")


def same_elements(ins: str, role: str, t: Tensor, n: int) -> None:
    """Refuse an operand whose elements a partition differ from the destination's."""
    if n != t.N:
        fail(ins, role, f"has {t.N} elements a partition (shape {t.shape}), must have {n}")


def matching(ins: str, role: str, t: Any, dst: Tensor, buffers: tuple[MemoryRegion, ...] = ON_CHIP) -> Tensor:
    """:func:`operand` with the destination's partitions and elements a partition."""
    out = operand(ins, role, t, buffers)
    if out.P != dst.P:
        same_partitions(ins, role, out, dst.P)
    if out.N != dst.N:
        same_elements(ins, role, out, dst.N)
    return out


def column(ins: str, role: str, t: Any, parts: int, fp32: bool = True) -> Tensor:
    """A [P, 1] operand: one value a partition."""
    out = operand(ins, role, t)
    same_partitions(ins, role, out, parts)
    if out.N != 1:
        fail(ins, role, f"must be [P, 1], one value a partition, not {out.shape}")
    if fp32 and out.dtype is not float32:
        fail(ins, role, f"must be float32, not {out.dtype}")
    return out


def not_both_psum(ins: str, role0: str, a: Tensor, role1: str, b: Tensor) -> None:
    """VectorE has one PSUM read port."""
    if a.buffer is MemoryRegion.psum and b.buffer is MemoryRegion.psum:
        fail(ins, role1, f"'{role0}' and '{role1}' are both in PSUM; at most one may be")


def same_start(ins: str, role0: str, a: Tensor, role1: str, b: Tensor) -> None:
    """Two SBUF inputs of one instruction come from the same partitions."""
    if a.buffer is MemoryRegion.sbuf and b.buffer is MemoryRegion.sbuf and a.start_partition != b.start_partition:
        fail(
            ins, role1,
            f"'{role0}' starts at partition {a.start_partition} and '{role1}' at {b.start_partition}; two SBUF inputs "
            "must start at the same partition",
        )  # fmt: skip


def pick_engine(ins: str, engine: Any, allowed: tuple[Engine, ...], default: Engine) -> Engine:
    """The engine asked for, or ``default`` for ``engine.unknown``."""
    asked = require_enum(ins, "engine", engine, Engine)
    if asked is Engine.unknown:
        return default
    if asked not in allowed:
        names = ", ".join(e.name for e in allowed)
        fail(ins, "engine", f"{asked.name} cannot run this; it runs on {names}")
    return asked


def no_psum_on_gpsimd(ins: str, engine: Engine, **operands: Any) -> None:
    """GpSimd has no port to PSUM."""
    if engine is Engine.gpsimd:
        for role, t in operands.items():
            if isinstance(t, Tensor) and t.buffer is MemoryRegion.psum:
                fail(ins, role, "is in PSUM, which GpSimd cannot reach")


def check_not_packed(ins: str, role: str, dtype: DType) -> None:
    """Refuse the packed types of trn3."""
    if dtype.kind == "x":
        fail(ins, role, f"{dtype} exists on trn3 only")


def read_f32(ins: str, role: str, t: Tensor) -> np.ndarray:
    """Elements as float32 [P, N]; may share memory with the tensor."""
    a = t.array
    if a.dtype != np.float32:
        check_not_packed(ins, role, t.dtype)
        a = to_f32(a)
    return a.reshape(t.P, t.N) if a.ndim != 2 else a


def read_raw(t: Tensor) -> np.ndarray:
    """Elements as stored, [P, N]; may share memory with the tensor."""
    a = t.array
    return a.reshape(t.P, t.N) if a.ndim != 2 else a


def write(t: Tensor, values: np.ndarray, known: np.ndarray | None = None, by_matmul: bool = False) -> None:
    """Round ``values`` [P, N] to the tensor's type and store them; where the view repeats an element the last wins.

    Args:
        known: Which of them are defined, of a shape that broadcasts to [P, N]; None: all (see ``undefined``).
    """
    if values.dtype != t.dtype.numpy or t.dtype is tfloat32:
        values = round_to(values, t.dtype)
    a = t.array
    shape = t.shape
    if values.shape != shape:
        values = values.reshape(shape)
    if 0 in t.strides:
        last = tuple(slice(-1, None) if s == 0 else slice(None) for s in t.strides)
        a[last] = values[last]
    else:
        a[...] = values
    if known is not None:
        t.set_defined(np.broadcast_to(known, (t.P, t.N)))
    elif t.storage.defined is not None:
        t.mark_defined()
    if t.storage.matmul_written is not None and not by_matmul:
        t.matmul_mask()[...] = False


def is_16bit_float(t: Tensor) -> bool:
    """bfloat16 or float16: the types of VectorE's fast modes."""
    return t.dtype.itemsize == 2 and t.dtype.is_float
