"""The constant tables of the fused prefill, made on chip while the first tile is on its way.

Rows r and columns c are tokens of a tile, of 128, or of a half of it, of 64. Each table is an affine condition on them.
"""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import HALF, LEVELS, TILE, drop_where, keep_where, sbuf

GROW, LOCAL, FADE, LEFT, EARLY, LATE, TOTAL = range(7)
"""Sums over tokens: up to i; up to i in its half; after i in its half; after i; the first half; the second; all."""


@dataclass
class Constants(nl.NKIObject):
    """Tables in SBUF.

    Attributes:
        eye: the identity, [128, 128]. left: r > c, [128, 128]. near: r > c in the same half, [128, 128].
        before: fp32 [128, 128], r = c - 1. sums: fp32 [128, 7, 128], one where k counts for i, by kind of sum.
        upper: [128, 64], column not less than row, rows and columns of a half.
        even, odd: [128, 32], rows of both halves: the even and the odd columns of the identity of 64.
        levels: [128, 5, 2, 32], rows (head of a pair, i): for widths w = 2, 4 ... 32 the columns of the even blocks of
            I - M_w, in the column block of the row's own head; zero in the other's. M_w is the lower left w x w block
            of every 2w x 2w block on the diagonal.

    All but `before` and `sums` are of the type of normalised operands.
    """

    eye: nl.ndarray
    left: nl.ndarray
    near: nl.ndarray
    before: nl.ndarray
    sums: nl.ndarray
    upper: nl.ndarray
    even: nl.ndarray
    odd: nl.ndarray
    levels: nl.ndarray


def make_constants(unit: nl.dtype) -> Constants:
    """All tables; `sums` are to come."""
    square, columns = (TILE, TILE), HALF // 2
    eye, left, near = sbuf(unit, square), sbuf(unit, square), sbuf(unit, square)
    even, odd = sbuf(unit, (TILE, columns)), sbuf(unit, (TILE, columns))
    upper, levels = sbuf(unit, (TILE, HALF)), sbuf(unit, (TILE, LEVELS, 2, columns))
    _fill(eye, 1.0)
    _fill(left, 1.0)
    _fill(levels, 0.0)
    _fill(levels[0:HALF, :, 0:1], -1.0)
    nisa.affine_select(
        dst=eye, pattern=[[-1, TILE]], channel_multiplier=1, on_true_tile=eye, on_false_value=0.0, cmp_op=nl.equal
    )
    keep_where(left, [[-1, TILE]], 1, -1, 0.0)
    _make_levels(levels)
    _copy(near, left)
    _fill(near[HALF:TILE, 0:HALF], 0.0)
    for half in range(2):
        pairs = eye[half * HALF : (half + 1) * HALF, half * HALF : (half + 1) * HALF].reshape((HALF, columns, 2))
        _copy(even[half * HALF : (half + 1) * HALF], pairs[:, :, 0:1])
        _copy(odd[half * HALF : (half + 1) * HALF], pairs[:, :, 1:2])
        _not(
            upper[half * HALF : (half + 1) * HALF],
            left[half * HALF : (half + 1) * HALF, half * HALF : (half + 1) * HALF],
        )
    sums, before = sbuf(nl.float32, (TILE, 7, TILE)), sbuf(nl.float32, (TILE, TILE))
    _copy(before[:, 1:TILE], eye[:, 0 : TILE - 1])
    _fill(before[:, 0:1], 0.0)
    return Constants(
        eye=eye, left=left, near=near, before=before, sums=sums, upper=upper, even=even, odd=odd, levels=levels
    )


def make_sums(const: Constants) -> None:
    """`sums`, from the other tables."""
    sums = const.sums
    _copy(sums[:, LEFT : LEFT + 1], const.left)
    _copy(sums[:, FADE : FADE + 1], const.near)
    _not(sums[:, GROW : GROW + 1], const.left)
    _copy(sums[:, LOCAL : LOCAL + 1], sums[:, GROW : GROW + 1])
    _fill(sums[0:HALF, LOCAL : LOCAL + 1, HALF:TILE], 0.0)
    _fill(sums[:, EARLY : TOTAL + 1], 1.0)
    _fill(sums[HALF:TILE, EARLY : EARLY + 1], 0.0)
    _fill(sums[0:HALF, LATE : LATE + 1], 0.0)


def _make_levels(levels: nl.ndarray) -> None:
    """From -1 in the columns of the row's own head, in the first half: all levels at once, condition by condition."""
    for condition in range(3):
        for level in range(LEVELS):
            width = 2 << level
            blocks, here = HALF // (2 * width), levels[0:HALF, level : level + 1, 0:1]
            # Column x of block b is c = 2wb + x; -1 where w <= r - 2wb < 2w, then 1 on the diagonal.
            if condition == 0:
                keep_where(here, [[-2 * width, blocks], [0, width]], 1, -width, 0.0)
            elif condition == 1:
                keep_where(here, [[2 * width, blocks], [0, width]], -1, 2 * width - 1, 0.0)
            else:
                drop_where(here, [[-2 * width, blocks], [-1, width]], 1, 0, 1.0)
    nisa.tensor_copy(dst=levels[HALF:TILE, :, 1:2], src=levels[0:HALF, :, 0:1], engine=nisa.engine.gpsimd)


def _fill(tile: nl.ndarray, value: float) -> None:
    nisa.memset(dst=tile, value=value, engine=nisa.engine.vector)


def _not(dst: nl.ndarray, src: nl.ndarray) -> None:
    nisa.tensor_scalar(
        dst=dst, data=src, op0=nl.multiply, operand0=-1.0, op1=nl.add, operand1=1.0, engine=nisa.engine.vector
    )


def _copy(dst: nl.ndarray, src: nl.ndarray) -> None:
    nisa.tensor_copy(dst=dst, src=src, engine=nisa.engine.vector)
