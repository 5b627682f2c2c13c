"""TensorE: matrix multiply and transpose."""

from typing import Any

import numpy as np

from .. import context
from ..context import refuse
from ..dtypes import FP8, DType, float8_e4m3fn, float32, tfloat32
from ..enums import Engine, MatmulPerfMode, MemoryRegion, require_enum
from ..errors import fail
from ..footprint import box_of, overlap
from ..hardware import HW
from ..operands import PSUM, SBUF, operand, read_f32, read_raw, write
from ..tensor import Tensor
from ..undefined import both, chosen, defined

_TILE = (32, 64, 128)
"""Rows, or columns, of a part of the PE array."""


def nc_matmul(
    dst: Tensor,
    stationary: Tensor,
    moving: Tensor,
    is_stationary_onezero: bool = False,
    is_moving_onezero: bool = False,
    is_transpose: bool = False,
    accumulate: bool | None = None,
    tile_position: tuple[int, ...] = (),
    tile_size: tuple[int, ...] = (),
    perf_mode: Any = MatmulPerfMode.none,
    name: str | None = None,
) -> None:
    """``dst[M, N] (+)= stationary[K, M].T @ moving[K, N]``, K on partitions, accumulated in float32 in PSUM.

    Args:
        dst: PSUM, float32 (the data's type in transpose mode), inside one bank.
        stationary, moving: SBUF. With ``double_row``: [K, 2, M] and [K, 2, N] in fp8.
        accumulate: True adds, False overwrites, None adds where a matmul has written this allocation before.
        tile_position, tile_size: Sub-array of the PE array that runs it; the destination starts at its column. A size
            that the array is not divided into takes the next that it is, where rule array-tile does not refuse it.
    """
    ins = "nc_matmul"
    mode = require_enum(ins, "perf_mode", perf_mode, MatmulPerfMode)
    dst = operand(ins, "dst", dst, PSUM)
    stationary = operand(ins, "stationary", stationary, SBUF)
    moving = operand(ins, "moving", moving, SBUF)
    double = mode is MatmulPerfMode.double_row
    k, m, n = stationary.P, stationary.N, moving.N
    if double:
        m, n = _double_row(stationary, moving, is_transpose, tile_size)
    if k != moving.P:
        fail(ins, "moving", f"contracts {moving.P} partitions, stationary contracts {k}")
    if m > HW.stationary_free:
        fail(ins, "stationary", f"free size {m} exceeds maximum {HW.stationary_free}")
    if n > HW.moving_free:
        fail(ins, "moving", f"free size {n} exceeds maximum {HW.moving_free}")
    if m != dst.P or n != dst.N:
        fail(ins, "dst", f"is [{dst.P}, {dst.N}], the product is [{m}, {n}]")
    if stationary.start_partition != moving.start_partition:
        fail(
            ins, "moving",
            f"starts at partition {moving.start_partition}, stationary at {stationary.start_partition}; must agree",
        )  # fmt: skip
    _check_dtypes(ins, stationary.dtype, moving.dtype)
    if is_transpose:
        if dst.dtype is not stationary.dtype:
            fail(ins, "dst", f"a transpose keeps the type: dst is {dst.dtype}, data is {stationary.dtype}")
        _fp8_step(ins, dst)
        _even_words(ins, dst)
    elif dst.dtype is not float32:
        fail(ins, "dst", f"must be float32 on trn2, not {dst.dtype}")
    bank_fit(ins, dst)
    part = _part(ins, dst, stationary, tile_position, tile_size, k, m)

    if is_transpose:
        write(dst, _transpose_by_matmul(ins, stationary, moving), _known_product(ins, dst, stationary, moving, True))
    else:
        a, b = read_f32(ins, "stationary", stationary), read_f32(ins, "moving", moving)
        if double:
            a, b = a.reshape(2 * k, m), b.reshape(2 * k, n)
        product = np.matmul(a.T, b)
        _accumulate(ins, dst, product, _known_product(ins, dst, stationary, moving, False), accumulate)
    core = context.current(ins)
    core.record(
        ins, Engine.tensor, n,
        (stationary.access(), moving.access()), (dst.access(),),
        {
            "m": m, "k": k, "double": double, "transpose": is_transpose,
            "fp32": stationary.dtype is float32 or moving.dtype is float32,
            "onezero": is_stationary_onezero or is_moving_onezero,
            "tile": part,
        },
        name,
    )  # fmt: skip


def _double_row(stationary: Tensor, moving: Tensor, is_transpose: bool, tile_size: tuple[int, ...]) -> tuple[int, int]:
    ins = "nc_matmul"
    for role, t in (("stationary", stationary), ("moving", moving)):
        if len(t.shape) < 3 or t.shape[1] != 2:
            fail(ins, role, f"double_row needs [K, 2, free], got {t.shape}")
        if t.dtype not in FP8:
            fail(ins, role, f"double_row needs float8_e4m3 or float8_e5m2, not {t.dtype}")
    if is_transpose or (tile_size and tile_size[1] != HW.partitions):
        fail(ins, "perf_mode", "double_row excludes transpose mode and column tiling")
    return stationary.N // 2, moving.N // 2


def _check_dtypes(ins: str, a: DType, b: DType) -> None:
    wide = (float32, tfloat32)
    for role, d in (("stationary", a), ("moving", b)):
        if not d.is_float:
            fail(ins, role, f"must be a float type, not {d}")
        if d is float8_e4m3fn:
            fail(ins, role, "float8_e4m3fn multiplies on trn3 only; trn2 takes float8_e4m3 and float8_e5m2")
    if (a in wide) != (b in wide):
        fail(ins, "moving", f"is {b} with a {a} stationary: if one is float32 or tfloat32 the other must be too")


def bank_fit(ins: str, dst: Tensor) -> None:
    """Refuse a PSUM destination that crosses a bank."""
    isz = dst.dtype.itemsize
    start = (dst.offset * isz) % dst.storage.info.row_bytes + (dst.storage.info.address or 0)
    reach = sum(s * (c - 1) for s, c in zip(dst.strides[1:], dst.shape[1:], strict=True)) * isz + isz
    if start % HW.psum_bank_bytes + reach > HW.psum_bank_bytes:
        fail(
            ins, "dst",
            f"bytes {start}..{start + reach} of a partition cross a {HW.psum_bank_bytes}-byte PSUM bank",
        )  # fmt: skip


def _part(
    ins: str, dst: Tensor, stationary: Tensor, position: tuple[int, ...], size: tuple[int, ...], k: int, m: int
) -> tuple[int, ...] | None:
    """Row, column, rows and columns of the array's part that runs a product; None: all of it."""
    if not size and not position:
        if dst.start_partition != 0:
            fail(
                ins, "dst",
                f"starts at partition {dst.start_partition}; without tile_position the product lands at partition 0",
            )  # fmt: skip
        return None
    if len(size) != 2 or len(position) != 2:
        fail(ins, "tile_size", f"tile_position {position} and tile_size {size} are both (row, column) pairs")
    extents = []
    for what, asked, at, need in (("row", size[0], position[0], k), ("column", size[1], position[1], m)):
        if not 0 < asked <= HW.partitions:
            fail(ins, "tile_size", f"{what} size {asked} is not between 1 and {HW.partitions}")
        if need > asked:
            fail(ins, "tile_size", f"{what} size {asked} is less than the {need} it must hold")
        extent = next(x for x in _TILE if x >= asked)
        if asked != extent:
            refuse("array-tile", ins, "tile_size", f"{what} size {asked} is not 32, 64 or 128")
        if at % extent or at + extent > HW.partitions:
            fail(ins, "tile_position", f"{what} {at} must be a multiple of the tile's {extent}, inside 128")
        extents.append(extent)
    if dst.start_partition != position[1]:
        fail(ins, "dst", f"starts at partition {dst.start_partition}, must be the tile's column {position[1]}")
    if stationary.start_partition != position[0]:
        fail(
            ins, "stationary", f"starts at partition {stationary.start_partition}, must be the tile's row {position[0]}"
        )
    return (*position, *extents)


def _is_eye(moving: np.ndarray) -> bool:
    return moving.shape[0] == moving.shape[1] and np.array_equal(moving, np.eye(moving.shape[0], dtype=np.float32))


def _transpose_by_matmul(ins: str, stationary: Tensor, moving: Tensor) -> np.ndarray:
    eye = read_f32(ins, "moving", moving)
    if _is_eye(eye):
        return np.ascontiguousarray(read_raw(stationary).T)
    return np.matmul(read_f32(ins, "stationary", stationary).T, eye)


def _known_product(ins: str, dst: Tensor, stationary: Tensor, moving: Tensor, transpose: bool) -> np.ndarray | None:
    """Where a product is defined: where its row of one operand and its column of the other are.

    A transpose by the identity moves elements one by one.
    """
    a, b = defined(ins, dst, "stationary", stationary), defined(ins, dst, "moving", moving)
    if a is None and b is None:
        return None
    if transpose and a is not None and b is None and _is_eye(read_f32(ins, "moving", moving)):
        return a.T
    fine = np.ones((dst.P, dst.N), dtype=np.bool_)
    if a is not None:
        fine &= np.asarray(a.reshape(-1, dst.P).all(axis=0))[:, None]
    if b is not None:
        fine &= np.asarray(b.reshape(-1, dst.N).all(axis=0))[None, :]
    return fine


def _even_words(ins: str, dst: Tensor) -> None:
    """TensorE writes PSUM in words of 4 bytes, of which a transposed row of a narrow type must fill an even number."""
    if dst.dtype.itemsize < 4:
        start = dst.offset * dst.dtype.itemsize % 4
        if dst.N % 2 or start:
            detail = f"{dst.N} elements a partition of {dst.dtype}, from byte {start} of a 4-byte word"
            refuse("transpose-of-one" if dst.N == 1 else "odd-transpose", ins, "dst", detail)


def _fp8_step(ins: str, dst: Tensor) -> None:
    """A transpose on TensorE writes 8-bit data into 16-bit PSUM elements: dst is every second byte."""
    if dst.dtype.itemsize == 1 and dst.N > 1 and dst.strides[-1] != 2:
        fail(ins, "dst", f"TensorE transposes {dst.dtype} into 16-bit elements: dst needs step 2")


def _accumulate(ins: str, dst: Tensor, product: np.ndarray, fine: np.ndarray | None, accumulate: bool | None) -> None:
    mask = dst.matmul_mask()
    if accumulate is not True:
        _begins_anew(ins, dst, accumulate, mask)
    if accumulate is False:
        add: Any = False
    elif accumulate is None:
        add = bool(mask.reshape(-1)[0])
        if bool(mask.all()) != add or bool(mask.any()) != add:
            add = mask.reshape(dst.P, dst.N, -1)[:, :, 0].copy()
    else:
        if not mask.all():
            fail(
                ins, "dst",
                "accumulate=True onto PSUM that no matmul has written: the result is undefined "
                "(memset and copies do not start an accumulation)",
            )  # fmt: skip
        add = True
    if add is False:
        write(dst, product, fine, by_matmul=True)
    else:
        old, held = dst.array.reshape(dst.P, dst.N), defined(ins, dst, "dst", dst)
        if add is not True:
            old, held = np.where(add, old, np.float32(0)), chosen(add, held, None)
        write(dst, product + old, both(fine, held), by_matmul=True)
    mask[...] = True


def _begins_anew(ins: str, dst: Tensor, accumulate: bool | None, mask: np.ndarray) -> None:
    """A sum begins here, or with ``accumulate=None`` goes on where a matmul has written: if nobody has read it."""
    consumed = dst.storage.info.consumed
    if not consumed:
        return
    here = box_of(dst.access())
    if accumulate is None and mask.any():
        if any(overlap(here, box_of(read)) for read in consumed):
            refuse("accumulate", ins, "dst", f"'{dst.name}' holds a finished sum that has been read")
        return
    consumed[:] = [read for read in consumed if not overlap(here, box_of(read))]


def nc_transpose(dst: Tensor, data: Tensor, engine: Any = Engine.unknown, name: str | None = None) -> None:
    """``dst[f, p] = data[p, f]``, bit for bit, free dimensions flattened.

    On TensorE: up to [128, 128], SBUF to PSUM. On VectorE: up to [32, 32]. ``engine.unknown`` follows the destination:
    PSUM means TensorE, SBUF means VectorE.
    """
    ins = "nc_transpose"
    asked = require_enum(ins, "engine", engine, Engine)
    dst, data = operand(ins, "dst", dst), operand(ins, "data", data)
    if asked is Engine.unknown:
        asked = Engine.tensor if dst.buffer is MemoryRegion.psum else Engine.vector
    if asked is Engine.tensor:
        limit = HW.partitions
        if dst.buffer is not MemoryRegion.psum:
            fail(ins, "dst", "TensorE writes only PSUM")
        if data.buffer is not MemoryRegion.sbuf:
            fail(ins, "data", "TensorE reads only SBUF")
        bank_fit(ins, dst)
        _fp8_step(ins, dst)
        _even_words(ins, dst)
    elif asked is Engine.vector:
        limit = 32
    else:
        fail(ins, "engine", f"{asked.name} cannot transpose; tensor and vector can")
    if limit < data.P or limit < data.N:
        fail(ins, "data", f"[{data.P}, {data.N}] exceeds [{limit}, {limit}] on the {asked.name} engine")
    if dst.P != data.N or dst.N != data.P:
        fail(ins, "dst", f"is [{dst.P}, {dst.N}], the transpose is [{data.N}, {data.P}]")
    if dst.dtype is not data.dtype:
        fail(ins, "dst", f"a transpose keeps the type: dst is {dst.dtype}, data is {data.dtype}")
    fine = defined(ins, dst, "data", data)
    write(dst, read_raw(data).T.copy(), None if fine is None else fine.T)
    context.current(ins).record(ins, asked, data.N, (data.access(),), (dst.access(),), {"m": data.N, "k": data.P}, name)
