"""What the gated delta rule kernels share: mask tables, PSUM banks in rotation, views, and small products.

A tile is TILE tokens, one a partition. Functions are called inside kernels and compile into them.
"""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

TILE = 128
HALF = 64
"""Tokens of a chunk, the grain of checkpoints; also half the columns of a tile."""
BANKS = 7
"""PSUM banks in rotation: the compiler may keep the eighth to itself for transposes."""
BANK_COLUMNS = 512
L2_EPS = 1e-6
LEVELS = 5
"""Levels of the solve on pairs of heads: block widths 2, 4 ... 32. Width 1 needs no product, width 64 is the last."""


@dataclass
class Bank(nl.NKIObject):
    """The PSUM banks in rotation. One allocation a bank, so that reuse waits for the last reader."""

    tiles: tuple
    turn: int = 0

    def take(self) -> nl.ndarray:
        """The next bank, [128, 512] fp32; its first product must be `accumulate=False`."""
        tile = self.tiles[self.turn % len(self.tiles)]
        self.turn = self.turn + 1
        return tile


def make_banks() -> Bank:
    """The banks. All are fp32: a bank is never seen as another type."""
    tiles = []
    for _ in range(BANKS):
        tiles.append(nl.ndarray((TILE, BANK_COLUMNS), dtype=nl.float32, buffer=nl.psum))
    return Bank(tiles=tuple(tiles))


def sbuf(dtype: nl.dtype, shape: tuple) -> nl.ndarray:
    """A tensor in SBUF."""
    return nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf)


def split(count: int, most: int) -> list:
    """(first, last + 1) ranges that cut `count` heads into as few equal parts of at most `most` as will do."""
    pieces = (count + most - 1) // most
    size = (count + pieces - 1) // pieces
    out = []
    for first in range(0, count, size):
        out.append((first, min(first + size, count)))
    return out


def even_columns(tile: nl.ndarray, width: int) -> nl.ndarray:
    """The even blocks of `width` columns of every 64 of [P, n, 64], as a view [P, n, blocks, 1, width]."""
    return tile.reshape((tile.shape[0], tile.shape[1], HALF // (2 * width), 2, width))[:, :, :, 0:1, :]


def odd_columns(tile: nl.ndarray) -> nl.ndarray:
    """Every other column of [P, n, 64] from the second on, as a view [P, n, 32, 1, 1]."""
    return tile.reshape((tile.shape[0], tile.shape[1], HALF // 2, 2, 1))[:, :, :, 1:2, :]


def over_heads(tile: nl.ndarray, start: int, columns: int, heads: int) -> nl.ndarray:
    """Columns of a whole tile [128, n] seen as [128, heads, columns], every head the same."""
    return tile.ap(pattern=[[tile.shape[1], TILE], [0, heads], [1, columns]], offset=start)


def product(stationary: nl.ndarray, moving: nl.ndarray) -> nl.ndarray:
    """stationary^T @ moving in a PSUM tile of its own."""
    out = nl.ndarray((stationary.shape[1], moving.shape[1]), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=out, stationary=stationary, moving=moving, accumulate=False)
    return out


def turn_into(dst: nl.ndarray, data: nl.ndarray, eye: nl.ndarray) -> None:
    """The transpose of `data` [P, F] in fp32 PSUM `dst` [F, P], exact whatever the type.

    A transpose keeps the type, and a PSUM tile of 2-byte elements cannot be written in odd widths: what is not fp32 is
    multiplied by `eye`, the identity of its own type.
    """
    if data.dtype == nl.float32:
        nisa.nc_transpose(dst=dst, data=data)
    else:
        size = data.shape[0]
        nisa.nc_matmul(dst=dst, stationary=data, moving=eye[0:size, 0:size], is_moving_onezero=True, accumulate=False)


def identity(dtype: nl.dtype) -> nl.ndarray:
    """[128, 128] in SBUF, made on chip."""
    out = sbuf(dtype, (TILE, TILE))
    nisa.memset(dst=out, value=1.0, engine=nisa.engine.gpsimd)
    keep_diagonal(out)
    return out


def keep_diagonal(tile: nl.ndarray) -> None:
    """Zero all of [128, n] but the elements of equal row and column."""
    nisa.affine_select(
        dst=tile, pattern=[[-1, tile.shape[1]]], channel_multiplier=1, on_true_tile=tile, on_false_value=0.0,
        cmp_op=nl.equal,
    )  # fmt: skip


def keep_where(tile: nl.ndarray, pattern: list, rows: int, offset: int, other: float) -> None:
    """Put `other` where offset + rows * row + pattern < 0."""
    nisa.affine_select(
        dst=tile, pattern=pattern, channel_multiplier=rows, on_true_tile=tile, on_false_value=other,
        cmp_op=nl.greater_equal, offset=offset,
    )  # fmt: skip


def drop_where(tile: nl.ndarray, pattern: list, rows: int, offset: int, other: float) -> None:
    """Put `other` where offset + rows * row + pattern is 0."""
    nisa.affine_select(
        dst=tile, pattern=pattern, channel_multiplier=rows, on_true_tile=tile, on_false_value=other,
        cmp_op=nl.not_equal, offset=offset,
    )  # fmt: skip


def index_tiles(
    src: nl.ndarray, count: int, engine: nisa.engine, dge_mode: nisa.dge_mode = nisa.dge_mode.unknown
) -> list:
    """The int32 [1, count] of HBM as `count` tiles of [1, 1]: an address is read from a tile of its own only."""
    tiles = []
    if count == 1:
        tiles.append(sbuf(nl.int32, (1, 1)))
        nisa.dma_copy(dst=tiles[0], src=src, dge_mode=dge_mode)
        return tiles
    together = sbuf(nl.int32, (1, count))
    nisa.dma_copy(dst=together, src=src, dge_mode=dge_mode)
    for n in range(count):
        tiles.append(sbuf(nl.int32, (1, 1)))
        nisa.tensor_copy(dst=tiles[n], src=together[:, n : n + 1], engine=engine)
    return tiles


def on_every_row(row: nl.ndarray, bank: Bank) -> nl.ndarray:
    """fp32 [1, n] of SBUF as PSUM [128, n], every row the same."""
    ones = sbuf(nl.float32, (1, TILE))
    nisa.memset(dst=ones, value=1.0, engine=nisa.engine.vector)
    out = bank.take()[:, 0 : row.shape[1]]
    nisa.nc_matmul(dst=out, stationary=ones, moving=row, is_stationary_onezero=True, accumulate=False)
    return out


def square_sums(dst: nl.ndarray, data: nl.ndarray, single: nl.dtype = nl.float32) -> None:
    """fp32 dst [P, n] = the sums of squares of data [P, n, D] over D, single squares of type `single`."""
    squares = sbuf(single, data.shape)
    nisa.tensor_tensor(dst=squares, data1=data, data2=data, op=nl.multiply, engine=nisa.engine.vector)
    nisa.tensor_reduce(dst=dst, op=nl.add, data=squares, axis=2)


def to_power(dst: nl.ndarray, data: nl.ndarray, add: float, power: float) -> None:
    """(data + add) ** power on VectorE: a root on ScalarE would change its function table."""
    nisa.tensor_scalar(
        dst=dst, data=data, op0=nl.add, operand0=add, op1=nl.power, operand1=power, engine=nisa.engine.vector
    )
