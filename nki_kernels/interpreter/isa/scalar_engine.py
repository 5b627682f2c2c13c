"""ScalarE: activation functions, with scale, bias and a running sum."""

from typing import Any

import numpy as np

from .. import context
from ..alu import ACT_RANGE, Op, require_act
from ..context import refuse
from ..dtypes import tfloat32
from ..enums import Engine, ReduceCmd, require_enum
from ..errors import fail
from ..operands import column, matching, operand, read_f32, write
from ..tensor import Tensor
from ..undefined import fold_known, known


def activation(
    dst: Tensor,
    op: Any,
    data: Tensor,
    bias: Any = None,
    scale: Any = 1.0,
    reduce_op: Any = None,
    reduce_res: Tensor | None = None,
    reduce_cmd: Any = ReduceCmd.idle,
    name: str | None = None,
) -> None:
    """``dst = op(data * scale + bias)``; optionally the registers take the sum of the result over the free axes.

    Args:
        scale: float or float32 [P, 1].
        bias: float or [P, 1] of any type but tfloat32.
        reduce_op: ``nl.add`` or None.
        reduce_res: [P, 1] that receives the registers.
        reduce_cmd: ``reset`` zeroes the registers, ``reduce`` adds to them, ``reset_reduce`` replaces them.
    """
    _activation("activation", dst, op, data, bias, scale, reduce_op, reduce_res, reduce_cmd, name)


def activation_reduce(
    dst: Tensor,
    op: Any,
    data: Tensor,
    reduce_op: Any,
    reduce_res: Tensor,
    bias: Any = None,
    scale: Any = 1.0,
    name: str | None = None,
) -> None:
    """:func:`activation` that also writes the sum of its result over the free axes to ``reduce_res``."""
    _activation(
        "activation_reduce", dst, op, data, bias, scale, reduce_op, reduce_res, ReduceCmd.reset_reduce, name
    )  # fmt: skip


def _check_range(ins: str, function: Op, x: np.ndarray, fine: np.ndarray | None) -> None:
    """Refuse defined arguments outside the function's documented range; sqrt takes 0, where its limit is plain."""
    bounds = ACT_RANGE.get(function.name)
    if bounds is None:
        return
    if fine is not None:
        x = x[np.broadcast_to(fine, x.shape)]
        if not x.size:
            return
    size = np.abs(x) if function.name == "reciprocal" else x
    low, high = float(size.min()), float(size.max())
    if low >= bounds[0] and high <= bounds[1]:
        return
    if function.name == "sqrt" and low >= 0 and high <= bounds[1] and size[size > 0].min(initial=np.inf) >= bounds[0]:
        return
    signed = "+-" if function.name == "reciprocal" else ""
    fail(
        ins, "data",
        f"{function!r} is valid on {signed}[{bounds[0]:.6g}, {bounds[1]:.6g}]; after scale and bias arguments reach "
        f"{low:.6g} and {high:.6g}",
    )  # fmt: skip


def _activation(
    ins: str, dst: Tensor, op: Any, data: Tensor, bias: Any, scale: Any, reduce_op: Any, reduce_res: Any,
    reduce_cmd: Any, name: str | None,
) -> None:  # fmt: skip
    function = require_act(ins, op)
    if function.name == "copy" and isinstance(bias, Tensor):
        refuse("activation-bias", ins, "bias", f"is a tensor {bias.shape}")
    if ins == "activation_reduce" and function.name == "square":
        refuse("activation-square-sum", ins, "op", "is square, summed")
    command = require_enum(ins, "reduce_cmd", reduce_cmd, ReduceCmd)
    dst = operand(ins, "dst", dst)
    data = matching(ins, "data", data, dst)
    reads = [data.access()]
    x = read_f32(ins, "data", data)
    owned = False
    if isinstance(scale, Tensor):
        scale = column(ins, "scale", scale, dst.P)
        x = x * read_f32(ins, "scale", scale)
        owned = True
        reads.append(scale.access())
    elif scale != 1.0:
        x = x * np.float32(scale)
        owned = True
    if isinstance(bias, Tensor):
        bias = column(ins, "bias", bias, dst.P, fp32=False)
        if bias.dtype is tfloat32 or not bias.dtype.is_float:
            fail(ins, "bias", f"must be a float type other than tfloat32, not {bias.dtype}")
        b = read_f32(ins, "bias", bias)
        if owned:
            x += b
        else:
            x = x + b
        reads.append(bias.access())
    elif bias is not None and bias != 0.0:
        x = x + np.float32(bias)
    fine = known(ins, dst, data=data, scale=scale, bias=bias)
    _check_range(ins, function, x, fine)
    assert function.act is not None
    with np.errstate(divide="ignore", invalid="ignore"):
        y = function.act(x)
    writes = [dst.access()]
    core = context.current(ins)
    if reduce_op is not None or command is not ReduceCmd.idle or reduce_res is not None:
        if command is not ReduceCmd.reset and (reduce_op is None or getattr(reduce_op, "name", "") != "add"):
            fail(ins, "reduce_op", f"must be nl.add, not {reduce_op!r}")
        at = dst.start_partition
        regs_known = core.scalar_known[at : at + dst.P]
        fold_known(regs_known, command, fine)
        regs = core.scalar_regs[at : at + dst.P]
        if command is ReduceCmd.reset:
            regs[:] = 0
        elif command is ReduceCmd.reduce:
            regs += y.sum(axis=1, dtype=np.float32)
        elif command is ReduceCmd.reset_reduce:
            regs[:] = y.sum(axis=1, dtype=np.float32)
        elif command is ReduceCmd.load_reduce:
            fail(ins, "reduce_cmd", "load_reduce is a VectorE command")
        if reduce_res is not None:
            reduce_res = column(ins, "reduce_res", reduce_res, dst.P, fp32=False)
    write(dst, y, fine)
    if reduce_res is not None:
        # After the main result: kernels let the two share an address when only the sum matters.
        reduce_res.storage.origin = reduce_res.storage.origin or dst.storage.origin
        write(reduce_res, regs.reshape(-1, 1).copy(), regs_known.reshape(-1, 1))
        writes.append(reduce_res.access())
    core.record(
        ins, Engine.scalar, dst.N, tuple(reads), tuple(writes),
        {"act": function.name, "reduce": reduce_res is not None}, name,
    )  # fmt: skip
