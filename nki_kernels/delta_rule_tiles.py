"""What the gated delta rule kernels share: constant tables, PSUM banks in rotation, and views.

A tile is TILE tokens, one a partition. Functions are called inside kernels and compile into them, except `mask_table`.
"""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl
import numpy as np

TILE = 128
HALF = 64
"""Tokens of a chunk, the grain of checkpoints; also half the columns of a tile."""
BANKS = 8
L2_EPS = 1e-6
LEVELS = 6
"""Products of the solve: block widths 2, 4 ... 64. Width 1 needs none."""
MASKED = -30000.0
"""Added to an exponent it gives exactly zero."""

# Columns of the mask table.
UPTO, AFTER, NEAR, EARLY, LATE, EYE, ABOVE, FIRST, FIRST_T, LEVEL = range(0, 10 * TILE, TILE)


def mask_table() -> np.ndarray:
    """[128, 1536] fp32, made on the host: blocks of columns, rows and columns being tokens r and c of a tile.

    UPTO: r <= c. AFTER: r > c. NEAR: r > c in the same half. EARLY: r < 64. LATE: r >= 64. EYE. ABOVE: MASKED where
    r > c. FIRST, FIRST_T: I - M_1 and its transpose.
    LEVEL: for w = 2, 4 ... 64, the even blocks of w columns of I - M_w, 64 columns each (its odd ones are those of I).
    M_w is the lower left w x w block of every 2w x 2w block on the diagonal.
    """
    r, c = np.arange(TILE)[:, None], np.arange(TILE)[None, :]
    eye = (r == c).astype(np.float32)
    near = (r > c) & (r // HALF == c // HALF)
    early = np.repeat(r < HALF, TILE, axis=1)
    parts = [r <= c, r > c, near, early, ~early, eye, MASKED * (r > c)]
    for width in (1 << level for level in range(LEVELS + 1)):
        lower = (r // (2 * width) == c // (2 * width)) & (r % (2 * width) >= width) & (c % (2 * width) < width)
        if width == 1:
            parts += [eye - lower, (eye - lower).T]
        else:
            parts.append((eye - lower).reshape(TILE, -1, 2, width)[:, :, 0].reshape(TILE, HALF))
    return np.concatenate(parts, axis=1).astype(np.float32)


MASKS = mask_table()


@dataclass
class Bank(nl.NKIObject):
    """The PSUM banks in rotation. One allocation a bank, so that reuse waits for the last reader."""

    tiles: tuple
    turn: int = 0

    def take(self) -> nl.ndarray:
        """The next bank, [128, 512] fp32; its first product must be `accumulate=False`."""
        tile = self.tiles[self.turn % BANKS]
        self.turn = self.turn + 1
        return tile


def make_banks() -> Bank:
    """All eight banks of PSUM."""
    tiles = []
    for _ in range(BANKS):
        tiles.append(nl.ndarray((TILE, 512), dtype=nl.float32, buffer=nl.psum))
    return Bank(tiles=tuple(tiles))


def sbuf(dtype: nl.dtype, free: tuple) -> nl.ndarray:
    """A tile of SBUF, [128, *free]."""
    return nl.ndarray((TILE, *free), dtype=dtype, buffer=nl.sbuf)


def split(count: int, most: int) -> list:
    """(first, last + 1) ranges that cut `count` heads into as few equal parts of at most `most` as will do."""
    pieces = (count + most - 1) // most
    size = (count + pieces - 1) // pieces
    out = []
    for first in range(0, count, size):
        out.append((first, min(first + size, count)))
    return out


def half_columns(tile: nl.ndarray, width: int, side: int) -> nl.ndarray:
    """The even (side 0) or odd (side 1) blocks of `width` columns of every head of [128, heads, 128], as a view."""
    return tile.reshape((TILE, tile.shape[1], TILE // (2 * width), 2, width))[:, :, :, side : side + 1, :]


def over_heads(tile: nl.ndarray, start: int, columns: int, heads: int) -> nl.ndarray:
    """Columns of a whole tile [128, n] seen as [128, heads, columns], every head the same."""
    return tile.ap(pattern=[[tile.shape[1], TILE], [0, heads], [1, columns]], offset=start)


def product(stationary: nl.ndarray, moving: nl.ndarray) -> nl.ndarray:
    """stationary^T @ moving in a PSUM tile of its own."""
    out = nl.ndarray((stationary.shape[1], moving.shape[1]), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=out, stationary=stationary, moving=moving, accumulate=False)
    return out
