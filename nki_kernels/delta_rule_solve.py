"""T = L^-1 of one tile by the masked 2x2 recursion, for all heads of a core.

With the diagonal blocks of width w inverted, those of width 2w follow from P = I - M_w o (L T), M_w the lower left
blocks between them: T <- T P. No power of L is ever formed, so nothing grows when keys are correlated. Up to width 32
only the two diagonal blocks of 64 tokens count, and two heads share a product: the stationary operand holds both heads'
blocks of both halves, and columns of one head and one half meet the right one in a quarter of the result, while the
rest is not used. T P has tokens on its rows, L T and T^T have (head, token of a half): a product turns one into the
other.
"""

import nki.isa as nisa
import nki.language as nl

from .delta_rule_gates import Gates
from .delta_rule_masks import Constants
from .delta_rule_system import Tile, over_columns
from .delta_rule_tiles import HALF, LEVELS, TILE, Bank, even_columns, odd_columns, sbuf, split, turn_into


def prepare(tile: Tile, const: Constants) -> None:
    """The odd columns of T, which are those of the identity until a level writes them."""
    heads, columns = tile.v.shape[1], HALF // 2
    nisa.tensor_copy(
        dst=odd_columns(tile.t[:, 0:heads]), src=const.odd.ap(pattern=[[columns, TILE], [0, heads], [1, columns]]),
        engine=nisa.engine.gpsimd,
    )  # fmt: skip
    for half in range(2):
        rows = half * HALF
        nisa.tensor_copy(
            dst=odd_columns(_own(tile.apart, half, heads)),
            src=const.odd.ap(pattern=[[columns, HALF], [0, heads], [1, columns]], offset=rows * columns),
            engine=nisa.engine.gpsimd,
        )  # fmt: skip


def _own(apart: nl.ndarray, half: int, heads: int) -> nl.ndarray:
    """[i, 2P, 2, 64] as [64, heads, 64]: the rows of one half, and the columns of the same."""
    rows = apart[half * HALF : (half + 1) * HALF, 0:heads, half : half + 1]
    return rows.reshape((HALF, heads, HALF))


def turn_pairs(tile: Tile, const: Constants, bank: Bank) -> None:
    """T^T of pairs: [i, (head, c)] -> [(head, c), i]."""
    for part in split(tile.turned_t.shape[1], 4):
        n = part[1] - part[0]
        psum = bank.take()[:, 0 : n * TILE]
        for p in range(n):
            pair = tile.t[:, 2 * (part[0] + p) : 2 * (part[0] + p) + 2].reshape((TILE, TILE))
            turn_into(psum[:, p * TILE : (p + 1) * TILE], pair, const.eye)
        nisa.tensor_copy(dst=tile.turned_t[:, part[0] : part[1]], src=psum, engine=nisa.engine.scalar)


def level_residual(tile: Tile, const: Constants, bank: Bank, level: int) -> None:
    """Leaves P on even columns, [(head, i), P, (head, half, c)]: zero where the heads differ."""
    width, pairs, columns = 2 << level, tile.turned_t.shape[1], HALF // 2
    out = sbuf(tile.t.dtype, (TILE, pairs, TILE))
    for part in split(pairs, 4):
        n = part[1] - part[0]
        psum = bank.take()[:, 0 : n * TILE]
        for p in range(n):
            first = 2 * (part[0] + p)
            apart = tile.apart[:, first : first + 2].reshape((TILE, 4, HALF))
            # [j, (head, i)] x [j, (head', half, c)] -> [(head, i), (head', half, c)]
            nisa.nc_matmul(
                dst=psum[:, p * TILE : (p + 1) * TILE], stationary=tile.lower[:, first : first + 2],
                moving=even_columns(apart, width), accumulate=False,
            )  # fmt: skip
        mask = const.levels.ap(
            pattern=[[LEVELS * HALF, TILE], [0, n], [columns, 2], [0, 2], [1, columns]], offset=level * HALF
        )
        nisa.tensor_tensor(
            dst=out[:, part[0] : part[1]], data1=psum, data2=mask, op=nl.multiply, engine=nisa.engine.vector
        )
    tile.held = out


def level_update(tile: Tile, bank: Bank, level: int) -> None:
    """T <- T P on even columns; P is what `level_residual` left."""
    width, pairs, columns = 2 << level, tile.turned_t.shape[1], HALF // 2
    for part in split(pairs, 4):
        n, first, last = part[1] - part[0], 2 * part[0], 2 * part[1]
        psum = bank.take()
        for at in range(n):
            # [(head, i'), (half, i)] x [(head, i'), (head', half', c)] -> [(half, i), (head', half', c)]
            nisa.nc_matmul(
                dst=psum[:, at * TILE : (at + 1) * TILE], stationary=tile.turned_t[:, part[0] + at : part[0] + at + 1],
                moving=tile.held[:, part[0] + at : part[0] + at + 1], accumulate=False,
            )  # fmt: skip
        for half in range(2):
            rows = psum[half * HALF : (half + 1) * HALF, 0 : n * TILE].reshape((HALF, 2 * n, 2, columns))
            dst = tile.t[half * HALF : (half + 1) * HALF, first:last]
            if level + 1 == LEVELS:
                dst = _own(tile.apart[:, first:last], half, 2 * n)
            nisa.tensor_copy(dst=even_columns(dst, width), src=rows[:, :, half : half + 1], engine=nisa.engine.scalar)
    if level + 1 < LEVELS:
        spread(tile, width)


def spread(tile: Tile, width: int) -> None:
    """Even columns of T to where the other half's columns are zero."""
    for half in range(2):
        rows = tile.t[half * HALF : (half + 1) * HALF]
        nisa.tensor_copy(
            dst=even_columns(_own(tile.apart, half, tile.t.shape[1]), width), src=even_columns(rows, width),
            engine=nisa.engine.gpsimd,
        )  # fmt: skip


def turn_heads(tile: Tile, const: Constants, bank: Bank) -> None:
    """T^T of every head, its two diagonal blocks so far."""
    for part in split(tile.v.shape[1], 4):
        n = part[1] - part[0]
        psum = bank.take()[:, 0 : n * TILE]
        for h in range(n):
            data = tile.apart[:, part[0] + h : part[0] + h + 1].reshape((TILE, TILE))
            turn_into(psum[:, h * TILE : (h + 1) * TILE], data, const.eye)
        nisa.tensor_copy(dst=tile.inverse[:, part[0] : part[1]], src=psum, engine=nisa.engine.scalar)


def scale_rows(tile: Tile, gates: Gates) -> None:
    """Leaves T of the first half, row j times beta_j and the decay from j to the end of the half: [j, H, c]."""
    heads = tile.v.shape[1]
    out = sbuf(tile.t.dtype, (HALF, heads, HALF))
    nisa.tensor_tensor(
        dst=out, data1=_own(tile.apart, 0, heads),
        data2=over_columns(gates.write_half, tile.place, (0, heads), (0, HALF), HALF), op=nl.multiply,
        engine=nisa.engine.vector,
    )  # fmt: skip
    tile.held = out


def last_residual(tile: Tile, gates: Gates, bank: Bank) -> None:
    """Leaves -L T between the halves, [i, H, c] on the rows of the second half; follows `scale_rows`.

    The decay from j in the first half to i in the second is the product of what is left of the first half after j and
    of what of the second is up to i, so that one product is enough for all heads of a key head.
    """
    heads, key_heads = tile.v.shape[1], tile.kq.shape[2]
    share, out = heads // key_heads, sbuf(tile.t.dtype, (TILE, heads, HALF))
    for part in split(key_heads, max(1, 8 // share)):
        first, last = part[0] * share, part[1] * share
        psum = bank.take()[HALF:TILE, 0 : (last - first) * HALF]
        for of in range(part[0], part[1]):
            at = (of * share - first) * HALF
            # [j, i] x [j, (h, c)] -> [i, (h, c)]
            nisa.nc_matmul(
                dst=psum[:, at : at + share * HALF], stationary=tile.cross[:, of : of + 1],
                moving=tile.held[:, of * share : (of + 1) * share], accumulate=False, tile_position=(0, HALF),
                tile_size=(HALF, HALF),
            )  # fmt: skip
        nisa.tensor_tensor(
            dst=out[HALF:TILE, first:last], data1=psum,
            data2=over_columns(gates.minus_local, tile.place, (first, last), (HALF, TILE), HALF), op=nl.multiply,
            engine=nisa.engine.vector,
        )  # fmt: skip
    tile.held = out


def last_update(tile: Tile, bank: Bank) -> None:
    """The block of T^T between the halves; follows `last_residual`."""
    for part in split(tile.v.shape[1], 8):
        n = part[1] - part[0]
        psum = bank.take()[0:HALF, 0 : n * HALF]
        for h in range(n):
            own = part[0] + h
            # [i', c] x [i', i] -> [c, i]
            nisa.nc_matmul(
                dst=psum[:, h * HALF : (h + 1) * HALF], stationary=tile.held[HALF:TILE, own : own + 1],
                moving=tile.inverse[HALF:TILE, own : own + 1, HALF:TILE], accumulate=False, tile_position=(HALF, 0),
                tile_size=(HALF, HALF),
            )  # fmt: skip
        nisa.tensor_copy(dst=tile.inverse[0:HALF, part[0] : part[1], HALF:TILE], src=psum, engine=nisa.engine.scalar)
