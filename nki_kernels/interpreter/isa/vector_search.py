"""The eight largest elements of a partition, where they are, and their replacement: VectorE's way to the top k."""

from typing import Any

import numpy as np

from .. import context
from ..enums import Engine
from ..errors import fail
from ..operands import matching, operand, read_f32, same_elements, same_partitions, write
from ..tensor import Tensor
from ..undefined import known_rows

_V = Engine.vector


def _eight(ins: str, role: str, t: Tensor) -> None:
    if not 8 <= t.N <= 16384:
        fail(ins, role, f"{t.N} elements a partition; must be 8 to 16384")


def max8(dst: Tensor, src: Tensor, name: str | None = None) -> None:
    """[P, 8]: the eight largest of each partition, descending."""
    ins = "max8"
    dst, src = operand(ins, "dst", dst), operand(ins, "src", src)
    same_partitions(ins, "src", src, dst.P)
    same_elements(ins, "dst", dst, 8)
    _eight(ins, "src", src)
    if len(src.shape) > 3:
        fail(ins, "src", f"{len(src.shape)} dimensions, at most 3")
    write(dst, np.ascontiguousarray(-np.sort(-read_f32(ins, "src", src), axis=1)[:, :8]), known_rows(ins, dst, src=src))
    context.current(ins).record(ins, _V, src.N, (src.access(),), (dst.access(),), {}, name)


def _index_of_eight(x: np.ndarray, vals: np.ndarray, order: Any) -> np.ndarray:
    """Position of each value in its row, -1 if absent; equal values take successive positions in ``order``."""
    out = np.full(vals.shape, -1, dtype=np.int64)
    for p in range(x.shape[0]):
        taken: dict[float, int] = {}
        for j in order:
            v = float(vals[p, j])
            places = np.flatnonzero(x[p] == vals[p, j])
            k = taken.get(v, 0)
            if k < places.size:
                out[p, j] = places[k]
            taken[v] = k + 1
    return out


def nc_find_index8(dst: Tensor, data: Tensor, vals: Tensor, name: str | None = None) -> None:
    """[P, 8] positions of eight values in each partition; all ones if absent; equal values go to successive places."""
    ins = "nc_find_index8"
    dst, data, vals = operand(ins, "dst", dst), operand(ins, "data", data), operand(ins, "vals", vals)
    same_partitions(ins, "data", data, dst.P)
    same_partitions(ins, "vals", vals, dst.P)
    same_elements(ins, "dst", dst, 8)
    same_elements(ins, "vals", vals, 8)
    _eight(ins, "data", data)
    if dst.dtype not in ("uint16", "uint32"):
        fail(ins, "dst", f"must be uint16 or uint32, not {dst.dtype}")
    found = _index_of_eight(read_f32(ins, "data", data), read_f32(ins, "vals", vals), range(8))
    write(dst, found.astype(dst.dtype.numpy), known_rows(ins, dst, data=data, vals=vals))
    context.current(ins).record(ins, _V, data.N, (data.access(), vals.access()), (dst.access(),), {}, name)


def nc_match_replace8(
    dst: Tensor, data: Tensor, vals: Tensor, imm: float, dst_idx: Tensor | None = None, name: str | None = None
) -> None:
    """``dst = data`` with the first place of each of eight values replaced by ``imm``; values go 7 down to 0."""
    ins = "nc_match_replace8"
    dst = operand(ins, "dst", dst)
    data = matching(ins, "data", data, dst)
    vals = operand(ins, "vals", vals)
    same_partitions(ins, "vals", vals, dst.P)
    same_elements(ins, "vals", vals, 8)
    if isinstance(imm, bool) or not isinstance(imm, (int, float)):
        fail(ins, "imm", f"must be a float, not {imm!r}")
    x = read_f32(ins, "data", data).copy()
    found = _index_of_eight(x, read_f32(ins, "vals", vals), range(7, -1, -1))
    rows, cols = np.nonzero(found >= 0)
    x[rows, found[rows, cols]] = imm
    fine = known_rows(ins, dst, data=data, vals=vals)
    write(dst, x, fine)
    writes = [dst.access()]
    if dst_idx is not None:
        dst_idx = operand(ins, "dst_idx", dst_idx)
        same_elements(ins, "dst_idx", dst_idx, 8)
        dst_idx.storage.origin = dst_idx.storage.origin or dst.storage.origin
        write(dst_idx, found.astype(dst_idx.dtype.numpy), fine)
        writes.append(dst_idx.access())
    context.current(ins).record(ins, _V, data.N, (data.access(), vals.access()), tuple(writes), {}, name)
