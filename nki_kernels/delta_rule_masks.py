"""The constant tables of the fused prefill, made on chip: GpSimd has nothing else to do before the first tile.

Rows r and columns c are tokens of a tile. Each table is an affine condition on r and c, or two.
"""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import HALF, LEVELS, TILE, half_columns, identity, sbuf


@dataclass
class Constants(nl.NKIObject):
    """Tables in SBUF, [128, n].

    Attributes:
        upto, after: fp32, r <= c and r > c. near: fp32, r > c in the same half of the tile.
        early, late: fp32, r < 64 and r >= 64.
        eye: the identity, of the operands' type. first, first_t: I - M_1 and its transpose, of that type.
        levels: of the operands' type, [128, 6, 64]: for w = 2, 4 ... 64 the even blocks of w columns of I - M_w.
        p: two buffers a level, for tiles in turn, for P = I - M_w o (A T), [128, heads, 128]; their odd columns are
            those of I for good.

    M_w is the lower left w x w block of every 2w x 2w block on the diagonal.
    """

    upto: nl.ndarray
    after: nl.ndarray
    near: nl.ndarray
    early: nl.ndarray
    late: nl.ndarray
    eye: nl.ndarray
    first: nl.ndarray
    first_t: nl.ndarray
    levels: nl.ndarray
    p: tuple


def make_constants(dtype: nl.dtype) -> Constants:
    """All tables, in the order in which the first tile asks for them."""
    f32, square = nl.float32, (TILE, TILE)
    upto, after, near = sbuf(f32, square), sbuf(f32, square), sbuf(f32, square)
    early, late = sbuf(f32, square), sbuf(f32, square)
    nisa.memset(dst=upto, value=1.0, engine=nisa.engine.gpsimd)
    keep_where(upto, [[1, TILE]], -1, 0, 0.0)
    nisa.memset(dst=after, value=1.0, engine=nisa.engine.gpsimd)
    keep_where(after, [[-1, TILE]], 1, -1, 0.0)
    nisa.memset(dst=near, value=1.0, engine=nisa.engine.gpsimd)
    keep_where(near, [[-1, TILE]], 1, -1, 0.0)
    keep_where(near[:, 0:HALF], [[0, HALF]], -1, HALF - 1, 0.0)
    nisa.memset(dst=early[0:HALF], value=1.0, engine=nisa.engine.gpsimd)
    nisa.memset(dst=early[HALF:TILE], value=0.0, engine=nisa.engine.gpsimd)
    nisa.memset(dst=late[0:HALF], value=0.0, engine=nisa.engine.gpsimd)
    nisa.memset(dst=late[HALF:TILE], value=1.0, engine=nisa.engine.gpsimd)
    eye, first, first_t = identity(dtype), identity(dtype), identity(dtype)
    # c = 2b, r = 2b + 1, and its mirror image.
    drop_where(half_columns(first.reshape((TILE, 1, TILE)), 1, 0), [[-2, HALF]], 1, -1, -1.0)
    drop_where(half_columns(first_t.reshape((TILE, 1, TILE)), 1, 1), [[-2, HALF]], 1, 0, -1.0)
    levels = sbuf(dtype, (TILE, LEVELS, HALF))
    nisa.memset(dst=levels, value=-1.0, engine=nisa.engine.gpsimd)
    for level in range(LEVELS):
        width = 2 << level
        blocks, here = HALF // width, levels[:, level : level + 1]
        # Column x of block b is c = 2wb + x; -1 where w <= r - 2wb < 2w, then 1 on the diagonal.
        keep_where(here, [[-2 * width, blocks], [0, width]], 1, -width, 0.0)
        keep_where(here, [[2 * width, blocks], [0, width]], -1, 2 * width - 1, 0.0)
        drop_where(here, [[-2 * width, blocks], [-1, width]], 1, 0, 1.0)
    return Constants(
        upto=upto, after=after, near=near, early=early, late=late, eye=eye, first=first, first_t=first_t,
        levels=levels, p=(),
    )  # fmt: skip


def keep_where(tile: nl.ndarray, pattern: list, rows: int, offset: int, other: float) -> None:
    """Put `other` where offset + rows * r + pattern < 0."""
    nisa.affine_select(
        dst=tile, pattern=pattern, channel_multiplier=rows, on_true_tile=tile, on_false_value=other,
        cmp_op=nl.greater_equal, offset=offset,
    )  # fmt: skip


def drop_where(tile: nl.ndarray, pattern: list, rows: int, offset: int, other: float) -> None:
    """Put `other` where offset + rows * r + pattern is 0."""
    nisa.affine_select(
        dst=tile, pattern=pattern, channel_multiplier=rows, on_true_tile=tile, on_false_value=other,
        cmp_op=nl.not_equal, offset=offset,
    )  # fmt: skip


def make_buffers(const: Constants, heads: int) -> None:
    """The buffers of P, with the columns that no level writes."""
    p = []
    for level in range(LEVELS):
        width = 2 << level
        blocks = TILE // (2 * width)
        odd = const.eye.ap(pattern=[[TILE, TILE], [0, heads], [2 * width, blocks], [1, width]], offset=width)
        pair = []
        for _ in range(2):
            buffer = sbuf(const.eye.dtype, (TILE, heads, TILE))
            nisa.tensor_copy(dst=half_columns(buffer, width, 1), src=odd, engine=nisa.engine.vector)
            pair.append(buffer)
        p.append(tuple(pair))
    const.p = tuple(p)
