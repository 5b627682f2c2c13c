"""Instructions of GpSimd: index generation, affine masks, gathers, cross-partition reduction, random numbers."""

from typing import Any

import numpy as np

from .. import context
from ..alu import OPS, apply, require_alu
from ..dtypes import int32, uint16, uint32
from ..enums import Engine
from ..errors import fail
from ..operands import SBUF, column, matching, operand, read_f32, read_raw, same_elements, same_partitions, write
from ..tensor import Tensor
from ..undefined import chosen, defined, known, known_rows

_G = Engine.gpsimd


def _affine(ins: str, dst: Tensor, pattern: Any, offset: int, channel_multiplier: int) -> np.ndarray:
    pairs = [(int(step), int(num)) for step, num in pattern]
    if not 1 <= len(pairs) <= 4:
        fail(ins, "pattern", f"{len(pairs)} [step, num] pairs; 1 to 4")
    n = 1
    for _, num in pairs:
        n *= num
    if n != dst.N:
        fail(ins, "pattern", f"{pairs} makes {n} values, dst has {dst.N} elements a partition")
    free = np.zeros(1, dtype=np.int64)
    for step, num in pairs:
        free = (free[:, None] + step * np.arange(num)[None, :]).reshape(-1)
    rows = np.arange(dst.P, dtype=np.int64)[:, None] * channel_multiplier
    return (rows + free[None, :] + offset).astype(np.int32)


def iota(dst: Tensor, pattern: Any, offset: int = 0, channel_multiplier: int = 0, name: str | None = None) -> None:
    """``dst[p, i0, i1 ...] = offset + p * channel_multiplier + sum(step_k * i_k)`` in int32, cast to dst's type."""
    ins = "iota"
    dst = operand(ins, "dst", dst, SBUF)
    values = _affine(ins, dst, pattern, offset, channel_multiplier)
    write(dst, values if dst.dtype.is_int else values.astype(np.float32))
    context.current(ins).record(ins, _G, dst.N, (), (dst.access(),), {}, name)


def affine_select(
    dst: Tensor,
    pattern: Any,
    channel_multiplier: int,
    on_true_tile: Tensor,
    on_false_value: float,
    cmp_op: Any = OPS["equal"],
    offset: int = 0,
    name: str | None = None,
) -> None:
    """``dst = on_true_tile`` where ``affine cmp_op 0``, else ``on_false_value``; the affine value is :func:`iota`'s."""
    ins = "affine_select"
    cmp_op = require_alu(ins, "cmp_op", cmp_op)
    dst = operand(ins, "dst", dst, SBUF)
    data = matching(ins, "on_true_tile", on_true_tile, dst, SBUF)
    if isinstance(on_false_value, (bool, Tensor)) or not isinstance(on_false_value, (int, float, np.floating)):
        fail(ins, "on_false_value", f"must be a float32 number, not {on_false_value!r}")
    where = apply(cmp_op, _affine(ins, dst, pattern, offset, channel_multiplier), np.int32(0)) != 0
    fine = chosen(where, known(ins, dst, on_true_tile=data), None)
    if data.dtype is dst.dtype:
        fill = np.array(on_false_value, dtype=np.float32).astype(dst.dtype.numpy)
        write(dst, np.where(where, read_raw(data), fill), fine)
    else:
        write(dst, np.where(where, read_f32(ins, "on_true_tile", data), np.float32(on_false_value)), fine)
    context.current(ins).record(ins, _G, dst.N, (data.access(),), (dst.access(),), {}, name)


def tensor_partition_reduce(dst: Tensor, op: Any, data: Tensor, name: str | None = None) -> None:
    """``dst[0] = fold of data over the partitions``; op add, average, maximum, bitwise_or or bitwise_and."""
    ins = "tensor_partition_reduce"
    if getattr(op, "name", None) not in ("add", "average", "maximum", "bitwise_or", "bitwise_and"):
        fail(ins, "op", f"{op!r} cannot reduce over partitions")
    dst, data = operand(ins, "dst", dst, SBUF), operand(ins, "data", data, SBUF)
    same_partitions(ins, "dst", dst, 1)
    same_elements(ins, "data", data, dst.N)
    if op.bitvec:
        y = getattr(np, op.name).reduce(read_raw(data), axis=0, keepdims=True)
    else:
        x = read_f32(ins, "data", data)
        if op.name == "maximum":
            y = x.max(axis=0, keepdims=True)
        else:
            y = x.sum(axis=0, keepdims=True) / np.float32(data.P if op.name == "average" else 1)
    fine = defined(ins, dst, "data", data)
    write(dst, y, None if fine is None else np.asarray(fine.all(axis=0, keepdims=True)))
    context.current(ins).record(ins, _G, data.N, (data.access(),), (dst.access(),), {}, name)


def nc_n_gather(dst: Tensor, data: Tensor, indices: Tensor, name: str | None = None) -> None:
    """``dst[p, j] = data[p, indices[p, j]]``, free dimensions flattened; indices uint32."""
    ins = "nc_n_gather"
    dst = operand(ins, "dst", dst, SBUF)
    data = operand(ins, "data", data, SBUF)
    indices = matching(ins, "indices", indices, dst, SBUF)
    same_partitions(ins, "data", data, dst.P)
    if indices.dtype is not uint32:
        fail(ins, "indices", f"must be uint32, not {indices.dtype}")
    if data.dtype is not dst.dtype:
        fail(ins, "data", f"must have dst's type {dst.dtype}, not {data.dtype}")
    indices.check_defined(ins, "indices")
    at = read_raw(indices).astype(np.int64)
    if at.max(initial=0) >= data.N:
        fail(ins, "indices", f"index {at.max()} is out of bounds for {data.N} elements a partition")
    fine = defined(ins, dst, "data", data)
    fine = None if fine is None else np.take_along_axis(fine, at, axis=1)
    write(dst, np.take_along_axis(read_raw(data), at, axis=1), fine)
    context.current(ins).record(ins, _G, dst.N, (data.access(), indices.access()), (dst.access(),), {}, name)


def local_gather(
    dst: Tensor,
    src_buffer: Tensor,
    index: Tensor,
    num_elem_per_idx: int = 1,
    num_valid_indices: int | None = None,
    name: str | None = None,
) -> None:
    """Gather within each group of 16 partitions by one index list a group, spread over its partitions.

    Index i of a group lies at partition ``i % 16``, column ``i // 16``; it names a run of
    ``num_elem_per_idx`` elements.
    """
    ins = "local_gather"
    dst, src, index = operand(ins, "dst", dst, SBUF), operand(ins, "src_buffer", src_buffer, SBUF), operand(
        ins, "index", index, SBUF
    )  # fmt: skip
    if index.dtype is not uint16:
        fail(ins, "index", f"must be uint16, not {index.dtype}")
    if src.dtype is not dst.dtype:
        fail(ins, "src_buffer", f"must have dst's type {dst.dtype}, not {src.dtype}")
    if num_elem_per_idx not in (1, 2, 4, 8, 16, 32):
        fail(ins, "num_elem_per_idx", f"{num_elem_per_idx} must be 1, 2, 4, 8, 16 or 32")
    for role, t in (("dst", dst), ("src_buffer", src), ("index", index)):
        if t.P % 16 or t.P != dst.P:
            fail(ins, role, f"{t.P} partitions; must be {dst.P}, a multiple of 16")
    valid = num_valid_indices if num_valid_indices is not None else index.N * 16
    if valid * num_elem_per_idx > dst.N or valid > index.N * 16:
        fail(ins, "num_valid_indices", f"{valid} indices of {num_elem_per_idx} elements do not fit dst's {dst.N}")
    if valid > 4096:
        fail(ins, "num_valid_indices", f"{valid} indices a core, at most 4096")
    index.check_defined(ins, "index")
    table, data = read_raw(index), read_raw(src)
    out = dst.array.reshape(dst.P, dst.N).copy()
    before, held = defined(ins, dst, "src_buffer", src), defined(ins, dst, "dst", dst)
    fine = np.ones((dst.P, dst.N), dtype=np.bool_) if held is None else held.copy()
    for g in range(0, dst.P, 16):
        at = table[g : g + 16].T.reshape(-1)[:valid].astype(np.int64)
        columns = (at[:, None] * num_elem_per_idx + np.arange(num_elem_per_idx)[None, :]).reshape(-1)
        if columns.max(initial=0) >= src.N:
            fail(ins, "index", f"index {at.max()} is out of bounds for {src.N} elements a partition")
        out[g : g + 16, : columns.size] = data[g : g + 16, columns]
        fine[g : g + 16, : columns.size] = True if before is None else before[g : g + 16, columns]
    write(dst, out, None if fine.all() else fine)
    context.current(ins).record(
        ins, _G, valid * num_elem_per_idx, (src.access(), index.access()), (dst.access(),),
        {"valid": valid, "per_index": num_elem_per_idx, "itemsize": dst.dtype.itemsize}, name,
    )  # fmt: skip


def nonzero_with_count(
    dst: Tensor, src: Tensor, index_offset: int = 0, padding_val: int = -1, name: str | None = None
) -> None:
    """Indices of the nonzero elements of partitions 0, 16 ... 112, then padding; the last element is their count."""
    ins = "nonzero_with_count"
    dst, src = operand(ins, "dst", dst, SBUF), operand(ins, "src", src, SBUF)
    same_partitions(ins, "dst", dst, src.P)
    same_elements(ins, "dst", dst, src.N + 1)
    if dst.dtype is not int32:
        fail(ins, "dst", f"must be int32, not {dst.dtype}")
    a, fine = dst.array, defined(ins, dst, "src", src)
    for p in range(0, src.P, 16):
        if fine is not None and not fine[p].all():
            dst[p : p + 1].set_defined(np.zeros((1, dst.N), dtype=np.bool_))
            continue
        places = np.flatnonzero(np.asarray(src[p : p + 1].array).reshape(-1) != 0)
        out = np.full(src.N + 1, padding_val, dtype=np.int32)
        out[: places.size] = places + index_offset
        out[-1] = places.size
        a[p] = out.reshape(a.shape[1:])
        dst[p : p + 1].mark_defined()
    context.current(ins).record(ins, _G, src.N, (src.access(),), (dst.access(),), {}, name)


def sequence_bounds(dst: Tensor, segment_ids: Tensor, name: str | None = None) -> None:
    """For each element of [1, N] ids, where its run of equal ids begins ([0, 0, i]) and ends ([0, 1, i]); 0 is padding.

    Padding begins at N and ends at -1.
    """
    ins = "sequence_bounds"
    dst, ids = operand(ins, "dst", dst, SBUF), operand(ins, "segment_ids", segment_ids, SBUF)
    same_partitions(ins, "dst", dst, ids.P)
    same_elements(ins, "dst", dst, 2 * ids.N)
    x = read_f32(ins, "segment_ids", ids)
    out = np.empty((ids.P, 2, ids.N), dtype=np.float32)
    out[:, 0], out[:, 1] = ids.N, -1
    for p in range(ids.P):
        for value in np.unique(x[p]):
            if value == 0:
                continue
            places = np.flatnonzero(x[p] == value)
            out[p, 0, places], out[p, 1, places] = places[0], places[-1] + 1
    write(dst, out.reshape(ids.P, -1), known_rows(ins, dst, segment_ids=ids))
    context.current(ins).record(ins, _G, ids.N, (ids.access(),), (dst.access(),), {}, name)


def topk(val_dst: Tensor, idx_dst: Tensor, src: Tensor, n: int, name: str | None = None) -> None:
    """The documents lay values out in a 16-partition snake without saying the order of equal values."""
    from ..errors import NotSimulatedError

    raise NotSimulatedError("topk", "", "is not simulated: its layout is not documented precisely; use max8")


def dropout(dst: Tensor, data: Tensor, prob: Any, name: str | None = None) -> None:
    """Zero each element with probability ``prob`` (float or [P, 1]); the rest is kept unscaled."""
    ins = "dropout"
    dst = operand(ins, "dst", dst)
    data = matching(ins, "data", data, dst)
    rate: Any = read_f32(ins, "prob", column(ins, "prob", prob, dst.P)) if isinstance(prob, Tensor) else float(prob)
    core = context.current(ins)
    x = read_f32(ins, "data", data)
    write(dst, np.where(core.rng.random(x.shape) < rate, np.float32(0), x), known(ins, dst, data=data, prob=prob))
    core.record(ins, Engine.vector, dst.N, (data.access(),), (dst.access(),), {}, name)


def rng(dst: Tensor, engine: Any = Engine.unknown, name: str | None = None) -> None:
    """Random bits for integer types, [0, 1) for floats. The device's sequence is not reproduced."""
    ins = "rng"
    dst = operand(ins, "dst", dst)
    core = context.current(ins)
    if dst.dtype.is_float:
        write(dst, core.rng.random((dst.P, dst.N)).astype(np.float32))
    else:
        info = np.iinfo(dst.dtype.numpy)
        write(dst, core.rng.integers(info.min, info.max, (dst.P, dst.N), dtype=dst.dtype.numpy, endpoint=True))
    core.record(ins, Engine.vector, dst.N, (), (dst.access(),), {}, name)


def set_rng_seed(src_seeds: Tensor, name: str | None = None) -> None:
    """Seed :func:`rng` from a one-element tensor."""
    ins = "set_rng_seed"
    seeds = operand(ins, "src_seeds", src_seeds)
    core = context.current(ins)
    seeds.check_defined(ins, "src_seeds")
    core.rng = np.random.default_rng(np.abs(read_raw(seeds).astype(np.int64)).ravel().tolist())
    core.record(ins, _G, seeds.N, (seeds.access(),), (), {}, name)
