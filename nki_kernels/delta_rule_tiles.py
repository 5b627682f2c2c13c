"""What the gated delta rule kernels share: constant masks, PSUM banks in rotation, and loads of partial tiles.

A tile is TILE tokens, one a partition. Helpers are called inside kernels and compile into them.
"""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

TILE = 128
CHUNK = 64
BANKS = 8
MASKED = -30000.0
"""Added to an exponent it gives exactly zero, and times one it is exact in bfloat16's range."""
L2_EPS = 1e-6


@dataclass
class Bank(nl.NKIObject):
    """The PSUM banks in rotation. One allocation a bank, so that reuse waits for the last reader."""

    tiles: tuple
    turn: int = 0

    def take(self) -> nl.ndarray:
        """The next bank: [128, 512] fp32, to be overwritten by an `accumulate=False` product first."""
        tile = self.tiles[self.turn % BANKS]
        self.turn = self.turn + 1
        return tile


def make_banks() -> Bank:
    """All eight banks of PSUM."""
    tiles = []
    for _ in range(BANKS):
        tiles.append(nl.ndarray((TILE, 512), dtype=nl.float32, buffer=nl.psum))
    return Bank(tiles=tuple(tiles))


def split(count: int, most: int) -> list:
    """(start, end) ranges that cut `count` heads into as few equal parts of at most `most` as will do."""
    pieces = (count + most - 1) // most
    size = (count + pieces - 1) // pieces
    out = []
    for start in range(0, count, size):
        out.append((start, min(start + size, count)))
    return out


def triangle(dtype: nl.dtype, step: int, offset: int, inside: float, outside: float) -> nl.ndarray:
    """[128, 128]: `inside` where step * (row - column) + offset >= 0, else `outside`."""
    tile = nl.ndarray((TILE, TILE), dtype=dtype, buffer=nl.sbuf)
    nisa.memset(dst=tile, value=inside, engine=nisa.engine.gpsimd)
    nisa.affine_select(
        dst=tile, pattern=[[-step, TILE]], channel_multiplier=step, on_true_tile=tile, on_false_value=outside,
        cmp_op=nl.greater_equal, offset=offset,
    )  # fmt: skip
    return tile


def identity(dtype: nl.dtype) -> nl.ndarray:
    """[128, 128] with ones on the diagonal."""
    tile = nl.ndarray((TILE, TILE), dtype=dtype, buffer=nl.sbuf)
    nisa.memset(dst=tile, value=1.0, engine=nisa.engine.gpsimd)
    nisa.affine_select(
        dst=tile, pattern=[[-1, TILE]], channel_multiplier=1, on_true_tile=tile, on_false_value=0.0, cmp_op=nl.equal
    )
    return tile


def level_mask(dtype: nl.dtype, width: int) -> nl.ndarray:
    """[128, 64]: I - M_w on the even column blocks of width w, M_w the lower-left block of every 2w x 2w block.

    Column m * w + x stands for column 2 * w * m + x of the full tile; the odd blocks of I - M_w are those of I.
    """
    blocks = TILE // (2 * width)
    tile = nl.ndarray((TILE, TILE // 2), dtype=dtype, buffer=nl.sbuf)
    nisa.memset(dst=tile, value=-1.0, engine=nisa.engine.gpsimd)
    nisa.affine_select(
        dst=tile, pattern=[[-2 * width, blocks], [0, width]], channel_multiplier=1, on_true_tile=tile,
        on_false_value=0.0, cmp_op=nl.greater_equal, offset=-width,
    )  # fmt: skip
    if blocks > 1:
        nisa.affine_select(
            dst=tile, pattern=[[-2 * width, blocks], [0, width]], channel_multiplier=1, on_true_tile=tile,
            on_false_value=0.0, cmp_op=nl.less, offset=-2 * width,
        )  # fmt: skip
    nisa.affine_select(
        dst=tile, pattern=[[-2 * width, blocks], [-1, width]], channel_multiplier=1, on_true_tile=tile,
        on_false_value=1.0, cmp_op=nl.not_equal,
    )  # fmt: skip
    return tile


def half_columns(tile: nl.ndarray, width: int, side: int) -> nl.ndarray:
    """The even (side 0) or odd (side 1) column blocks of width w of every head of [128, heads, 128], as a view."""
    heads = tile.shape[1]
    blocks = TILE // (2 * width)
    return tile.reshape((TILE, heads, blocks, 2, width))[:, :, :, side : side + 1, :]


def load_rows(dst: nl.ndarray, src: nl.ndarray, rows: int) -> None:
    """`src` [rows, ...] of HBM into the first rows of a tile; the others become zero."""
    if rows < TILE:
        nisa.memset(dst=dst, value=0.0, engine=nisa.engine.gpsimd)
        nisa.dma_copy(dst=dst[0:rows], src=src)
    else:
        nisa.dma_copy(dst=dst, src=src)


def over_heads(tile: nl.ndarray, heads: int) -> nl.ndarray:
    """[128, n] seen as [128, heads, n], every head the same."""
    n = tile.shape[1]
    return tile.ap(pattern=[[n, TILE], [0, heads], [1, n]])
