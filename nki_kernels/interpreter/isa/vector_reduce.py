"""Reductions, running sums, selects and statistics of VectorE."""

from typing import Any

import numpy as np

from .. import context
from ..alu import OPS, Op, apply, require_alu
from ..context import refuse
from ..dtypes import int32, tfloat32, uint32
from ..enums import Engine, ReduceCmd, require_enum
from ..errors import fail
from ..hardware import HW
from ..operands import (
    column,
    matching,
    not_both_psum,
    operand,
    read_f32,
    read_raw,
    same_elements,
    same_partitions,
    same_start,
    write,
)
from ..tensor import Tensor
from ..undefined import both, chosen, defined, fold_known, known, known_rows
from .vector_engine import TRN3_SCALAR_OPS, scalar_operand

_V = Engine.vector
FP32_MIN = -3.4028234663852886e38
_FOLD = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "maximum": np.maximum, "minimum": np.minimum,
    "bitwise_and": np.bitwise_and, "bitwise_or": np.bitwise_or, "bitwise_xor": np.bitwise_xor,
}  # fmt: skip


def fold(op: Op, x: np.ndarray, axis: int) -> np.ndarray:
    """Fold ``x`` along one axis, keeping it as size 1."""
    ufunc = _FOLD.get(op.name)
    if ufunc is not None:
        return ufunc.reduce(x, axis=axis, keepdims=True)
    out = np.take(x, [0], axis=axis)
    for i in range(1, x.shape[axis]):
        out = apply(op, out, np.take(x, [i], axis=axis))
    return out


def _reduce_op(ins: str, role: str, op: Any, names: tuple[str, ...] | None = None) -> Op:
    op = require_alu(ins, role, op)
    if not op.reduces or (names is not None and op.name not in names):
        fail(ins, role, f"{op!r} cannot reduce here")
    return op


def tensor_reduce(
    dst: Tensor, op: Any, data: Tensor, axis: Any, negate: bool = False, keepdims: bool = False, name: str | None = None
) -> None:
    """Fold the trailing free axes ``axis`` of ``data`` into ``dst``; times -1 if ``negate``.

    Args:
        axis: int or tuple, contiguous, ending with the last dimension; never the partition.
    """
    ins = "tensor_reduce"
    op = _reduce_op(ins, "op", op)
    dst, data = operand(ins, "dst", dst), operand(ins, "data", data)
    same_partitions(ins, "data", data, dst.P)
    if HW.max_reduce < data.N:
        refuse("reduce-size", ins, "data", f"{data.N} elements a partition")
    nd = len(data.shape)
    axes = sorted(a + nd if a < 0 else a for a in (axis if isinstance(axis, (tuple, list)) else (axis,)))
    if not axes or 0 in axes or axes != list(range(nd - len(axes), nd)):
        fail(
            ins, "axis", f"{axis} must be the trailing free dimensions of {data.shape}, contiguous, without dimension 0"
        )
    inner = 1
    for a in axes:
        inner *= data.shape[a]
    outer = data.N // inner
    if outer != dst.N:
        fail(ins, "dst", f"has {dst.N} elements a partition, the reduction leaves {outer}")
    if op.bitvec:
        if not data.dtype.is_int or data.dtype.itemsize != dst.dtype.itemsize:
            fail(ins, "data", f"{op!r} needs integer types of one width, not {data.dtype}")
        x = read_raw(data)
    else:
        x = read_f32(ins, "data", data)
    y = fold(op, x.reshape(data.P, outer, inner), 2)[:, :, 0]
    fine = defined(ins, dst, "data", data)
    if fine is not None:
        fine = np.asarray(fine.reshape(data.P, outer, inner).all(axis=2))
    write(dst, -y if negate else y, fine)
    context.current(ins).record(
        ins, _V, data.N, (data.access(),), (dst.access(),), {"alu": op.name, "axes": len(axes)}, name
    )


def _registers(
    ins: str, core: context.Core, dst: Tensor, command: ReduceCmd, op: Op, y: np.ndarray, init: Any,
    fine: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The accumulation registers after the command, and which of them are defined, ``fine`` being where ``y`` is."""
    at = dst.start_partition
    regs = core.vector_regs[at : at + dst.P]
    fold_known(core.vector_known[at : at + dst.P], command, fine, defined(ins, dst, "reduce_init", init))
    folded = fold(op, y, 1)[:, 0]
    if command is ReduceCmd.reset:
        regs[:] = op.identity
    elif command is ReduceCmd.reduce:
        regs[:] = apply(op, regs, folded)
    elif command is ReduceCmd.reset_reduce:
        regs[:] = folded
    elif command is ReduceCmd.load_reduce:
        start = read_f32(ins, "reduce_init", column(ins, "reduce_init", init, dst.P))[:, 0] if isinstance(
            init, Tensor) else np.float32(init if init is not None else op.identity)  # fmt: skip
        regs[:] = apply(op, folded, start)
    return regs, core.vector_known[at : at + dst.P].reshape(-1, 1).copy()


def tensor_scalar_reduce(
    dst: Tensor,
    data: Tensor,
    op0: Any,
    operand0: Any,
    reduce_op: Any,
    reduce_res: Tensor | None = None,
    reverse0: bool = False,
    reduce_cmd: Any = ReduceCmd.reset_reduce,
    reduce_init: Any = None,
    reduce_res_negate: bool = False,
    name: str | None = None,
) -> None:
    """``dst = data op0 operand0``; ``reduce_res`` [P, 1] = fold of dst over every free axis."""
    ins = "tensor_scalar_reduce"
    op0 = require_alu(ins, "op0", op0)
    if op0.bitvec:
        fail(ins, "op0", f"{op0!r}: only arithmetic operators")
    if op0.name in TRN3_SCALAR_OPS:
        fail(ins, "op0", f"{op0!r} in a tensor_scalar instruction exists on trn3 only")
    rop = _reduce_op(ins, "reduce_op", reduce_op, ("add", "multiply", "maximum", "minimum"))
    command = require_enum(ins, "reduce_cmd", reduce_cmd, ReduceCmd)
    if reverse0:
        fail(ins, "reverse0", "is not supported yet")
    dst = operand(ins, "dst", dst)
    data = matching(ins, "data", data, dst)
    if max(len(dst.shape), len(data.shape)) > 4:
        refuse("reduce-rank", ins, "data", f"has {len(data.shape)} dimensions, dst {len(dst.shape)}")
    reads: list[Any] = [data.access()]
    y = apply(op0, read_f32(ins, "data", data), scalar_operand(ins, "operand0", operand0, dst, op0, data, reads))
    core = context.current(ins)
    fine = known(ins, dst, data=data, operand0=operand0)
    regs, regs_known = _registers(ins, core, dst, command, rop, y, reduce_init, fine)
    writes = [dst.access()]
    if reduce_res is not None:
        reduce_res = column(ins, "reduce_res", reduce_res, dst.P, fp32=False)
    write(dst, y, fine)
    if reduce_res is not None:
        reduce_res.storage.origin = reduce_res.storage.origin or dst.storage.origin
        write(reduce_res, (-regs if reduce_res_negate else regs).reshape(-1, 1).copy(), regs_known)
        writes.append(reduce_res.access())
    core.record(ins, _V, dst.N, tuple(reads), tuple(writes), {"reduce": reduce_res is not None}, name)


def tensor_scalar_cumulative(
    dst: Tensor,
    src: Tensor,
    op0: Any,
    op1: Any,
    imm0: Any,
    imm1: Any = None,
    reduce_cmd: Any = ReduceCmd.reset_reduce,
    name: str | None = None,
) -> None:
    """``reg = (src[i] op0 imm0) op1 reg; dst[i] = reg`` along the free axis."""
    ins = "tensor_scalar_cumulative"
    op0 = require_alu(ins, "op0", op0)
    op1 = require_alu(ins, "op1", op1)
    if op0.bitvec:
        fail(ins, "op0", f"{op0!r}: only arithmetic operators")
    if op1.name not in ("add", "subtract", "multiply", "maximum", "minimum"):
        fail(ins, "op1", f"{op1!r} cannot accumulate")
    command = require_enum(ins, "reduce_cmd", reduce_cmd, ReduceCmd)
    dst = operand(ins, "dst", dst)
    src = matching(ins, "src", src, dst)
    for role, t in (("dst", dst), ("src", src)):
        if t.dtype in (int32, uint32):
            fail(ins, role, f"{t.dtype} is not supported")
    reads: list[Any] = [src.access()]
    core = context.current(ins)
    at = dst.start_partition
    regs = core.vector_regs[at : at + dst.P]
    if command in (ReduceCmd.reset, ReduceCmd.reset_reduce):
        regs[:] = op1.identity
    elif command is ReduceCmd.load_reduce:
        regs[:] = np.ravel(scalar_operand(ins, "imm1", imm1, dst, op1, src, reads))
    x = apply(op0, read_f32(ins, "src", src), scalar_operand(ins, "imm0", imm0, dst, op0, src, reads))
    out = np.empty((dst.N, dst.P), dtype=np.float32)
    carry = regs.copy()
    for i in range(dst.N):
        carry = apply(op1, x[:, i], carry)
        out[i] = carry
    regs[:] = carry
    fine = known(ins, dst, src=src, imm0=imm0)
    regs_known = core.vector_known[at : at + dst.P]
    if command in (ReduceCmd.reset, ReduceCmd.reset_reduce):
        regs_known[:] = True
    elif command is ReduceCmd.load_reduce:
        first = defined(ins, dst, "imm1", imm1)
        regs_known[:] = True if first is None else first[:, 0]
    so_far = np.broadcast_to(True if fine is None else fine, (dst.P, dst.N)) & regs_known[:, None]
    so_far = np.logical_and.accumulate(so_far, axis=1)
    regs_known[:] = so_far[:, -1]
    write(dst, out.T, so_far)
    core.record(ins, _V, dst.N, tuple(reads), (dst.access(),), {}, name)


def select_reduce(
    dst: Tensor,
    predicate: Tensor,
    on_true: Tensor,
    on_false: Any,
    reduce_res: Tensor | None = None,
    reduce_cmd: Any = ReduceCmd.idle,
    reduce_op: Any = OPS["maximum"],
    reverse_pred: bool = False,
    name: str | None = None,
) -> None:
    """``dst = on_true`` where ``predicate`` is not zero, else ``on_false`` (float or [P, 1]); optional row maximum."""
    ins = "select_reduce"
    _reduce_op(ins, "reduce_op", reduce_op, ("maximum",))
    command = require_enum(ins, "reduce_cmd", reduce_cmd, ReduceCmd)
    dst = operand(ins, "dst", dst)
    predicate = matching(ins, "predicate", predicate, dst)
    on_true = matching(ins, "on_true", on_true, dst)
    if predicate.dtype not in ("int8", "uint8", "int16", "uint16", "bool_"):
        fail(ins, "predicate", f"must be int8, uint8, int16 or uint16, not {predicate.dtype}")
    if on_true.dtype in (tfloat32, int32, uint32):
        fail(ins, "on_true", f"{on_true.dtype} is not supported")
    not_both_psum(ins, "on_true", on_true, "predicate", predicate)
    same_start(ins, "on_true", on_true, "predicate", predicate)
    reads: list[Any] = [predicate.access(), on_true.access()]
    other = scalar_operand(ins, "on_false", on_false, dst, OPS["add"], on_true, reads)
    where = (read_raw(predicate) != 0) != reverse_pred
    y = np.where(where, read_f32(ins, "on_true", on_true), other).astype(np.float32)
    fine = chosen(where, known(ins, dst, on_true=on_true), known(ins, dst, on_false=on_false))
    fine = both(fine, known(ins, dst, predicate=predicate))
    _finish_select(ins, context.current(ins), dst, y, fine, command, reduce_res, reads, name)


def range_select(
    dst: Tensor,
    on_true_tile: Tensor,
    comp_op0: Any,
    comp_op1: Any,
    bound0: Tensor,
    bound1: Tensor,
    reduce_cmd: Any = ReduceCmd.reset_reduce,
    reduce_res: Tensor | None = None,
    reduce_op: Any = OPS["maximum"],
    range_start: int = 0,
    on_false_value: float = FP32_MIN,
    name: str | None = None,
) -> None:
    """``dst = on_true`` where the column's index compares true with both bounds, else the lowest float32.

    The index of column j is ``range_start + j``, below 2^24; bounds are float32 [P, 1].
    """
    ins = "range_select"
    _reduce_op(ins, "reduce_op", reduce_op, ("maximum",))
    command = require_enum(ins, "reduce_cmd", reduce_cmd, ReduceCmd)
    dst = operand(ins, "dst", dst)
    data = matching(ins, "on_true_tile", on_true_tile, dst)
    if not data.dtype.is_float:
        fail(ins, "on_true_tile", f"must be a float type, not {data.dtype}")
    if np.float32(on_false_value) != np.float32(FP32_MIN):
        fail(ins, "on_false_value", f"must be {FP32_MIN}, the lowest float32")
    if range_start + dst.N >= 1 << 24:
        fail(ins, "range_start", f"indices reach {range_start + dst.N}, must stay below 2^24")
    reads: list[Any] = [data.access()]
    index = np.arange(range_start, range_start + dst.N, dtype=np.float32)[None, :]
    where = np.ones((dst.P, dst.N), dtype=np.bool_)
    for role, op, bound in (("bound0", comp_op0, bound0), ("bound1", comp_op1, bound1)):
        op = require_alu(ins, "comp_op0" if role == "bound0" else "comp_op1", op)
        if op.name not in ("equal", "less", "less_equal", "greater", "greater_equal"):
            fail(ins, "comp_op0" if role == "bound0" else "comp_op1", f"{op!r} is not a comparison this takes")
        limit = column(ins, role, bound, dst.P)
        reads.append(limit.access())
        where &= apply(op, index, read_f32(ins, role, limit)) != 0
    y = np.where(where, read_f32(ins, "on_true_tile", data), np.float32(FP32_MIN))
    fine = chosen(where, known(ins, dst, on_true_tile=data), None)
    fine = both(fine, known(ins, dst, bound0=bound0, bound1=bound1))
    _finish_select(ins, context.current(ins), dst, y, fine, command, reduce_res, reads, name)


def _finish_select(
    ins: str, core: context.Core, dst: Tensor, y: np.ndarray, fine: np.ndarray | None, command: ReduceCmd,
    reduce_res: Tensor | None, reads: list[Any], name: str | None,
) -> None:  # fmt: skip
    writes = [dst.access()]
    regs, regs_known = _registers(ins, core, dst, command, OPS["maximum"], y, None, fine)
    if reduce_res is not None:
        reduce_res = column(ins, "reduce_res", reduce_res, dst.P, fp32=False)
    write(dst, y, fine)
    if reduce_res is not None:
        reduce_res.storage.origin = reduce_res.storage.origin or dst.storage.origin
        write(reduce_res, regs.reshape(-1, 1).copy(), regs_known)
        writes.append(reduce_res.access())
    core.record(ins, _V, dst.N, tuple(reads), tuple(writes), {"reduce": reduce_res is not None}, name)


def bn_stats(dst: Tensor, data: Tensor, name: str | None = None) -> None:
    """[P, 6]: count, mean and variance times count of the even elements of a partition, then of the odd ones."""
    ins = "bn_stats"
    dst, data = operand(ins, "dst", dst), operand(ins, "data", data)
    same_partitions(ins, "data", data, dst.P)
    same_elements(ins, "dst", dst, 6)
    if HW.bn_stats_free < data.N:
        fail(ins, "data", f"free size {data.N} exceeds maximum {HW.bn_stats_free}")
    x = read_f32(ins, "data", data)
    out = np.zeros((dst.P, 6), dtype=np.float32)
    for half in (0, 1):
        part = x[:, half::2]
        if part.shape[1]:
            mean = part.mean(axis=1, dtype=np.float32)
            out[:, 3 * half] = part.shape[1]
            out[:, 3 * half + 1] = mean
            out[:, 3 * half + 2] = np.square(part - mean[:, None]).sum(axis=1)
    write(dst, out, known_rows(ins, dst, data=data))
    context.current(ins).record(ins, _V, data.N, (data.access(),), (dst.access(),), {}, name)


def bn_aggr(dst: Tensor, data: Tensor, name: str | None = None) -> None:
    """[P, 2]: mean and population variance from (count, mean, variance times count) triples."""
    ins = "bn_aggr"
    dst, data = operand(ins, "dst", dst), operand(ins, "data", data)
    same_partitions(ins, "data", data, dst.P)
    same_elements(ins, "dst", dst, 2)
    if data.N % 3:
        fail(ins, "data", f"{data.N} elements a partition are not (count, mean, variance * count) triples")
    x = read_f32(ins, "data", data).reshape(dst.P, -1, 3)
    count, mean, spread = x[:, :, 0], x[:, :, 1], x[:, :, 2]
    total = count.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = (count * mean).sum(axis=1) / total
        variance = (spread + count * np.square(mean - middle[:, None])).sum(axis=1) / total
    write(dst, np.stack([middle, variance], axis=1).astype(np.float32), known_rows(ins, dst, data=data))
    context.current(ins).record(ins, _V, data.N, (data.access(),), (dst.access(),), {}, name)
