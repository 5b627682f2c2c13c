"""Elementwise instructions of VectorE (some of them also on ScalarE and GpSimd)."""

from typing import Any

import numpy as np

from .. import context
from ..alu import Op, apply, require_alu
from ..context import refuse
from ..dtypes import int32, uint32
from ..enums import Engine, MemoryRegion
from ..errors import fail
from ..operands import (
    check_not_packed,
    column,
    matching,
    no_psum_on_gpsimd,
    not_both_psum,
    operand,
    pick_engine,
    read_f32,
    read_raw,
    same_start,
    start_partition_error,
    write,
)
from ..tensor import Tensor
from ..undefined import both, chosen, defined, known

_V, _S, _G = Engine.vector, Engine.scalar, Engine.gpsimd


def tensor_copy(dst: Tensor, src: Tensor, engine: Any = Engine.unknown, name: str | None = None) -> None:
    """``dst = src``; bit for bit when the types agree, else through float32."""
    ins = "tensor_copy"
    dst = operand(ins, "dst", dst)
    src = matching(ins, "src", src, dst)
    eng = pick_engine(ins, engine, (_V, _S, _G), _V)
    no_psum_on_gpsimd(ins, eng, dst=dst, src=src)
    values = read_raw(src) if dst.dtype is src.dtype else read_f32(ins, "src", src)
    if dst.storage is src.storage:
        values = values.copy()
    write(dst, values, known(ins, dst, src=src))
    # A dynamic offset is resolved on the way in; what it cost is in the address registers, not in the data path.
    context.current(ins).record(ins, eng, dst.N, (src.access(),), (dst.access(),), {}, name)


def memset(dst: Tensor, value: Any, engine: Any = Engine.unknown, name: str | None = None) -> None:
    """Fill with a constant; an integer tensor takes a whole number."""
    ins = "memset"
    dst = operand(ins, "dst", dst)
    eng = pick_engine(ins, engine, (_V, _G), _V)
    no_psum_on_gpsimd(ins, eng, dst=dst)
    if isinstance(value, (bool, Tensor)) or not isinstance(value, (int, float, np.floating, np.integer)):
        fail(ins, "value", f"must be a number, not {value!r}")
    if dst.dtype.is_int and not isinstance(value, (int, np.integer)):
        if not float(value).is_integer():
            fail(ins, "value", f"{value!r} is no whole number, dst is {dst.dtype}")
        context.refuse("memset-float", ins, "value", f"{value!r} is a float, dst is {dst.dtype}")
    if dst.dtype.kind == "x" and value != 0:
        fail(ins, "value", f"{dst.dtype} takes only 0")
    if dst.dtype.is_int:
        info = np.iinfo(dst.dtype.numpy)
        if not info.min <= value <= info.max:
            fail(ins, "value", f"{value} does not fit {dst.dtype}")
        fill = np.array(value, dtype=dst.dtype.numpy)
    else:
        with np.errstate(over="ignore"):
            fill = np.array(value, dtype=np.float32).astype(dst.dtype.numpy)
    write(dst, np.broadcast_to(fill, (dst.P, dst.N)))
    context.current(ins).record(ins, eng, dst.N, (), (dst.access(),), {"zero": value == 0}, name)


def tensor_copy_predicated(
    dst: Tensor, src: Any, predicate: Tensor, reverse_pred: bool = False, name: str | None = None
) -> None:
    """``dst = src`` where ``predicate`` is not zero (is zero, if reversed); the rest of dst stays."""
    ins = "tensor_copy_predicated"
    dst = operand(ins, "dst", dst)
    predicate = matching(ins, "predicate", predicate, dst)
    if predicate.dtype not in ("uint8", "uint16", "uint32", "bool_"):
        fail(ins, "predicate", f"must be uint8, uint16 or uint32, not {predicate.dtype}")
    where = (read_raw(predicate) != 0) != reverse_pred
    reads = [predicate.access()]
    if isinstance(src, Tensor):
        src = matching(ins, "src", src, dst)
        if src.dtype is not dst.dtype:
            fail(ins, "src", f"must have dst's type {dst.dtype}, not {src.dtype}")
        not_both_psum(ins, "src", src, "predicate", predicate)
        same_start(ins, "src", src, "predicate", predicate)
        values: Any = read_raw(src)
        reads.append(src.access())
    else:
        values = np.array(float(src), dtype=np.float32).astype(dst.dtype.numpy)
    defined_there = chosen(where, defined(ins, dst, "src", src), defined(ins, dst, "dst", dst))
    defined_there = both(defined_there, defined(ins, dst, "predicate", predicate))
    write(dst, np.where(where, values, dst.array.reshape(dst.P, dst.N)), defined_there)
    context.current(ins).record(
        ins, _V, dst.N, (*reads, dst.access()), (dst.access(),), {"both_sbuf": isinstance(src, Tensor)}, name
    )


def tensor_tensor(
    dst: Tensor, data1: Tensor, data2: Tensor, op: Any, engine: Any = Engine.unknown, name: str | None = None
) -> None:
    """``dst = data1 op data2``, element by element.

    Arithmetic is float32, except that three 32-bit integer operands in SBUF compute exactly on GpSimd. ``power`` runs
    on GpSimd. Bit operators need integers of one width.
    """
    ins = "tensor_tensor"
    op = require_alu(ins, "op", op)
    dst = operand(ins, "dst", dst)
    data1 = matching(ins, "data1", data1, dst)
    data2 = matching(ins, "data2", data2, dst)
    not_both_psum(ins, "data1", data1, "data2", data2)
    same_start(ins, "data1", data1, "data2", data2)
    tensors = (dst, data1, data2)
    whole = all(t.dtype is int32 or t.dtype is uint32 for t in tensors)
    psum = any(t.buffer is MemoryRegion.psum for t in tensors)
    default = _G if op.name == "power" or (whole and not psum and not op.bitvec) else _V
    eng = pick_engine(ins, engine, (_V, _G), default)
    if op.name == "power":
        if eng is _V and engine is _V:
            fail(ins, "engine", "power runs on GpSimd only")
        eng = _G
    no_psum_on_gpsimd(ins, eng, dst=dst, data1=data1, data2=data2)
    if eng is _G and op.name != "power" and not all(t.dtype.is_int and t.dtype.itemsize == 4 for t in tensors):
        refuse("gpsimd-arithmetic", ins, "engine", f"gpsimd, for {op!r} of {data1.dtype} and {data2.dtype}")
    if op.bitvec:
        values = _bitvec(ins, op, tensors, data1, data2)
    elif whole and eng is _G:
        wide = apply(op, read_raw(data1).astype(np.int64), read_raw(data2).astype(np.int64))
        values = wide.astype(np.int64).astype(dst.dtype.numpy)
    else:
        values = apply(op, read_f32(ins, "data1", data1), read_f32(ins, "data2", data2))
    write(dst, values, known(ins, dst, data1=data1, data2=data2))
    context.current(ins).record(
        ins, eng, dst.N, (data1.access(), data2.access()), (dst.access(),), {"alu": op.name}, name
    )


def _bitvec(ins: str, op: Op, tensors: tuple[Tensor, ...], a: Tensor, b: Tensor) -> np.ndarray:
    for role, t in zip(("dst", "data1", "data2"), tensors, strict=True):
        if not t.dtype.is_int or t.dtype.itemsize != tensors[0].dtype.itemsize:
            fail(ins, role, f"{op!r} needs integer types of one width, not {t.dtype}")
    x, y = read_raw(a), read_raw(b)
    return apply(op, x, y.view(x.dtype)).view(tensors[0].dtype.numpy)


def scalar_operand(
    ins: str, role: str, value: Any, dst: Tensor, op: Op, data: Tensor, reads: list[Any], fp32: bool = True
) -> np.ndarray | np.float32:
    """A float, or a [P, 1] tensor, as what the ALU sees: float32 (integers of the data's type for bit operators)."""
    if isinstance(value, Tensor):
        value = column(ins, role, value, dst.P, fp32=fp32 and not op.bitvec)
        reads.append(value.access())
        if op.bitvec:
            if not value.dtype.is_int:
                fail(ins, role, f"{op!r} needs an integer, not {value.dtype}")
            return read_raw(value).astype(data.dtype.numpy)
        return read_f32(ins, role, value)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        if op.unary and value is None:
            return np.float32(0)
        fail(ins, role, f"must be a number or a [P, 1] tensor, not {value!r}")
    if op.bitvec:
        if not isinstance(value, (int, np.integer)):
            fail(ins, role, f"{op!r} needs an int, not {value!r}")
        return np.array(int(value) & ((1 << (8 * data.dtype.itemsize)) - 1)).astype(
            f"u{data.dtype.itemsize}"
        ).view(data.dtype.numpy)  # fmt: skip
    return np.float32(value)


_SCALAR_ENGINE_FORMS = (("multiply", "add"), ("multiply", None), ("add", None))
TRN3_SCALAR_OPS = ("square", "relu", "abs_max", "abs_min")


def tensor_scalar(
    dst: Tensor,
    data: Tensor,
    op0: Any,
    operand0: Any,
    reverse0: bool = False,
    op1: Any = None,
    operand1: Any = None,
    reverse1: bool = False,
    engine: Any = Engine.unknown,
    name: str | None = None,
) -> None:
    """``dst = (data op0 operand0) op1 operand1``; each operand a float or a float32 [P, 1]; reverse swaps the sides."""
    ins = "tensor_scalar"
    op0 = require_alu(ins, "op0", op0)
    op1 = None if op1 is None else require_alu(ins, "op1", op1)
    dst = operand(ins, "dst", dst)
    data = matching(ins, "data", data, dst)
    for role, op in (("op0", op0), ("op1", op1)):
        if op is not None and op.name in TRN3_SCALAR_OPS:
            fail(ins, role, f"{op!r} in tensor_scalar exists on trn3 only")
    if op1 is not None and op1.bitvec != op0.bitvec and op1.name != "bypass":
        fail(ins, "op1", f"{op0!r} and {op1!r}: both must be bit operators or both arithmetic")
    rsqrt = "rsqrt" in (op0.name, op1.name if op1 else "")
    eng = pick_engine(ins, engine, (_V, _S, _G), _G if rsqrt else _V)
    if eng is _G and not rsqrt:
        fail(ins, "engine", "gpsimd runs tensor_scalar only for rsqrt")
    if eng is _S and (op0.name, op1.name if op1 else None) not in _SCALAR_ENGINE_FORMS:
        fail(ins, "engine", "on trn2 ScalarE runs only multiply, add, and multiply then add")
    no_psum_on_gpsimd(ins, eng, dst=dst, data=data)
    reads: list[Any] = [data.access()]
    if op0.bitvec:
        for role, t in (("dst", dst), ("data", data)):
            if not t.dtype.is_int or t.dtype.itemsize != data.dtype.itemsize:
                fail(ins, role, f"{op0!r} needs integer types of one width, not {t.dtype}")
        x = read_raw(data)
    else:
        x = read_f32(ins, "data", data)
    y = apply(op0, x, scalar_operand(ins, "operand0", operand0, dst, op0, data, reads), reverse0)
    if op1 is not None and op1.name != "bypass":
        y = apply(op1, y, scalar_operand(ins, "operand1", operand1, dst, op1, data, reads), reverse1)
    if op0.bitvec:
        y = y.view(dst.dtype.numpy)
    write(dst, y, known(ins, dst, data=data, operand0=operand0, operand1=operand1))
    context.current(ins).record(ins, eng, dst.N, tuple(reads), (dst.access(),), {"alu": op0.name}, name)


def scalar_tensor_tensor(
    dst: Tensor,
    data: Tensor,
    op0: Any,
    operand0: Any,
    op1: Any,
    operand1: Tensor,
    reverse0: bool = False,
    reverse1: bool = False,
    name: str | None = None,
) -> None:
    """``dst = (data op0 operand0) op1 operand1``: a float or [P, 1] of any type first, then a whole tensor."""
    ins = "scalar_tensor_tensor"
    op0, op1 = require_alu(ins, "op0", op0), require_alu(ins, "op1", op1)
    for role, op in (("op0", op0), ("op1", op1)):
        if op.bitvec:
            fail(ins, role, f"{op!r}: only arithmetic operators")
    dst = operand(ins, "dst", dst)
    data = matching(ins, "data", data, dst)
    operand1 = matching(ins, "operand1", operand1, dst)
    not_both_psum(ins, "data", data, "operand1", operand1)
    same_start(ins, "data", data, "operand1", operand1)
    reads: list[Any] = [data.access(), operand1.access()]
    scalar = scalar_operand(ins, "operand0", operand0, dst, op0, data, reads, fp32=False)
    y = apply(op0, read_f32(ins, "data", data), scalar, reverse0)
    y = apply(op1, y, read_f32(ins, "operand1", operand1), reverse1)
    write(dst, y, known(ins, dst, data=data, operand0=operand0, operand1=operand1))
    context.current(ins).record(
        ins, _V, dst.N, tuple(reads), (dst.access(),), {"alu": op0.name, "alu1": op1.name}, name
    )


def tensor_tensor_scan(
    dst: Tensor,
    data0: Tensor,
    data1: Tensor,
    initial: Any,
    op0: Any,
    op1: Any,
    reverse0: bool = False,
    reverse1: bool = False,
    name: str | None = None,
) -> None:
    """``r[i] = (data0[i] op0 r[i-1]) op1 data1[i]`` along the free axis, ``r[-1] = initial``; the carry is float32."""
    ins = "tensor_tensor_scan"
    op0, op1 = require_alu(ins, "op0", op0), require_alu(ins, "op1", op1)
    for role, op in (("op0", op0), ("op1", op1)):
        if op.bitvec:
            fail(ins, role, f"{op!r}: only arithmetic operators")
    dst = operand(ins, "dst", dst)
    data0 = matching(ins, "data0", data0, dst)
    data1 = matching(ins, "data1", data1, dst)
    not_both_psum(ins, "data0", data0, "data1", data1)
    same_start(ins, "data0", data0, "data1", data1)
    reads: list[Any] = [data0.access(), data1.access()]
    if isinstance(initial, Tensor):
        initial = column(ins, "initial", initial, dst.P, fp32=False)
        reads.append(initial.access())
        carry = read_f32(ins, "initial", initial)[:, 0]
    else:
        carry = np.full(dst.P, initial, dtype=np.float32)
    a, b = read_f32(ins, "data0", data0).T, read_f32(ins, "data1", data1).T
    out = np.empty((dst.N, dst.P), dtype=np.float32)
    for i in range(dst.N):
        carry = apply(op1, apply(op0, a[i], carry, reverse0), b[i], reverse1)
        out[i] = carry
    so_far = known(ins, dst, data0=data0, data1=data1, initial=initial)
    if so_far is not None:
        so_far = np.logical_and.accumulate(np.broadcast_to(so_far, (dst.P, dst.N)), axis=1)
    write(dst, out.T, so_far)
    context.current(ins).record(
        ins, _V, dst.N, tuple(reads), (dst.access(),), {"alu": op0.name, "alu1": op1.name}, name
    )


def reciprocal(dst: Tensor, data: Tensor, name: str | None = None) -> None:
    """``dst = 1 / data``."""
    ins = "reciprocal"
    dst = operand(ins, "dst", dst)
    data = matching(ins, "data", data, dst)
    with np.errstate(divide="ignore"):
        write(dst, np.float32(1) / read_f32(ins, "data", data), known(ins, dst, data=data))
    context.current(ins).record(ins, _V, dst.N, (data.access(),), (dst.access(),), {}, name)


def nc_stream_shuffle(dst: Tensor, src: Tensor, shuffle_mask: Any, name: str | None = None) -> None:
    """In each quadrant of 32 partitions, ``dst[i] = src[shuffle_mask[i]]``; 255 leaves a partition alone.

    Up to 32 partitions may come from one quadrant and go to another.
    """
    ins = "nc_stream_shuffle"
    mask = list(shuffle_mask)
    if len(mask) != 32 or any(m != 255 and not 0 <= m < 32 for m in mask):
        fail(ins, "shuffle_mask", "must be 32 values, each 0..31 or 255")
    dst, src = operand(ins, "dst", dst), operand(ins, "src", src)
    if dst.dtype is not src.dtype:
        fail(ins, "dst", f"must have src's type {src.dtype}, not {dst.dtype}")
    if dst.N != src.N:
        fail(ins, "src", f"has {src.N} elements a partition, dst has {dst.N}")
    check_not_packed(ins, "src", src.dtype)
    span = -(-max(dst.P, src.P) // 32) * 32
    for role, t in (("dst", dst), ("src", src)):
        wrong = start_partition_error(t.start_partition, span)
        if wrong:
            fail(ins, role, f"(in whole quadrants) {wrong}")
    rows = [p for p in range(dst.P) if mask[p % 32] != 255]
    taken = [p // 32 * 32 + mask[p % 32] for p in rows]
    for p, at in zip(rows, taken, strict=True):
        if at >= src.P:
            fail(ins, "shuffle_mask", f"partition {p} takes partition {at}, src has {src.P}")
    from_src, kept = defined(ins, dst, "src", src), dst.defined_mask()
    if rows:
        dst.array[rows] = read_raw(src)[taken].reshape(len(rows), *dst.shape[1:])
    if from_src is not None or kept is not None:
        fine = np.ones((dst.P, dst.N), dtype=np.bool_) if kept is None else kept.reshape(dst.P, dst.N).copy()
        fine[rows] = True if from_src is None else from_src[taken]
        dst.set_defined(fine)
    context.current(ins).record(ins, _V, dst.N, (src.access(),), (dst.access(),), {}, name)
