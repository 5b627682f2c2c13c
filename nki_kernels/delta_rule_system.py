"""The fused prefill before its solve: one tile of 128 tokens, all heads of a core, up to the triangular system.

Shapes are [partition, free...]. Indices: i and j tokens of the tile (j the earlier), d the key dimension. Products are
nc_matmul's stationary^T @ moving. Each function is one stage, short enough that the stages of other tiles, issued
between two of one tile, hide its latencies.
"""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .delta_rule_gates import Gates
from .delta_rule_masks import Constants
from .delta_rule_tiles import (
    HALF,
    L2_EPS,
    TILE,
    Bank,
    drop_where,
    even_columns,
    sbuf,
    split,
    square_sums,
    to_power,
    turn_into,
)


@dataclass
class Tile(nl.NKIObject):
    """One tile of 128 tokens between its stages. HK key heads, H value heads, P = ceil(H / 2) pairs of them.

    A half is 64 tokens. "Compact" are the two diagonal blocks of 64 x 64 of a matrix side by side in rows: row j holds
    the 64 columns of its own half.

    Attributes:
        place: its number. rows: tokens that exist; the others are zeros. held: what one stage leaves for the next.
        kq: [i, 2, HK, d], keys then queries, as they came. v: [i, H, v], as they came.
        value: the same, zero on padding.
        unit: [i, 2, HK, d], normalised, queries by 1 / sqrt(D) as well. turned: [d, 2, HK, i].
        open, close: [k, H, 64]: g_k where k <= i in the second half, and everywhere in the first; and in both halves.
        beta: [j, H, 64], beta_j where j <= i in the same half.
        decay: [j, H, 2, 64]: beta_j e^(G_i - G_j) for j <= i, compact, and for i in the second half and j in the first.
        lower: [j, 2P, 64], compact L^T, L = I + the lower triangle of k k^T times `decay`.
        cross: [j, HK, 64], k_j . k_i for j in the first half and i in the second.
        scores: [j, H, i], q_i . k_j times `decay`.
        t: [i, 2P, 64], compact T. apart: the same as [i, 2P, 2, 64], zero where the column's half is not the row's.
        turned_t: T^T of pairs, [(head of the pair, j), P, 2, 64], by half.
        inverse: [j, H, i], T^T.
    """

    place: int
    rows: int
    held: nl.ndarray
    kq: nl.ndarray
    v: nl.ndarray
    value: nl.ndarray
    unit: nl.ndarray
    turned: nl.ndarray
    open: nl.ndarray
    close: nl.ndarray
    beta: nl.ndarray
    decay: nl.ndarray
    lower: nl.ndarray
    cross: nl.ndarray
    scores: nl.ndarray
    t: nl.ndarray
    apart: nl.ndarray
    turned_t: nl.ndarray
    inverse: nl.ndarray


@dataclass
class Room(nl.NKIObject):
    """What tiles write in part and leave zero elsewhere, for tiles in turn: as in `Tile`."""

    lower: nl.ndarray
    scores: nl.ndarray
    t: nl.ndarray
    apart: nl.ndarray


def make_room(unit: nl.dtype, heads: int) -> Room:
    """Room for one tile."""
    pairs = (heads + 1) // 2
    return Room(
        lower=sbuf(unit, (TILE, 2 * pairs, HALF)), scores=sbuf(unit, (TILE, heads, TILE)),
        t=sbuf(unit, (TILE, 2 * pairs, HALF)), apart=sbuf(unit, (TILE, 2 * pairs, 2, HALF)),
    )  # fmt: skip


def clear_room(tile: Tile) -> None:
    """Zeros where no tile writes."""
    heads, room = tile.v.shape[1], tile.t.shape[1]
    _clear(tile.apart)
    _clear(tile.scores[HALF:TILE, :, 0:HALF])
    if room > heads:
        _clear(tile.lower[:, heads:room])
        _clear(tile.t[:, heads:room])


def _clear(dst: nl.ndarray) -> None:
    nisa.memset(dst=dst, value=0.0, engine=nisa.engine.gpsimd)


def make_tile(k: nl.ndarray, v: nl.ndarray, keys: tuple, values: tuple, place: int, room: Room) -> Tile:
    """Tile `place` of key heads `keys` and value heads `values`, both (first, last + 1), empty."""
    dt, rows = k.dtype, min(TILE, k.shape[0] - place * TILE)
    key_heads, heads = keys[1] - keys[0], values[1] - values[0]
    unit, pairs = room.t.dtype, (heads + 1) // 2
    both, half = (TILE, 2, key_heads, TILE), (TILE, heads, HALF)
    return Tile(
        place=place, rows=rows, kq=sbuf(dt, both), v=sbuf(dt, (TILE, heads, TILE)),
        value=sbuf(unit, (TILE, heads, TILE)), held=room.t, unit=sbuf(unit, both),
        turned=sbuf(unit, both), open=sbuf(unit, half), close=sbuf(unit, half), beta=sbuf(unit, half),
        decay=sbuf(unit, (TILE, heads, 2, HALF)), lower=room.lower,
        cross=sbuf(unit, (HALF, key_heads, HALF)), scores=room.scores, t=room.t, apart=room.apart,
        turned_t=sbuf(unit, (TILE, pairs, 2, HALF)), inverse=sbuf(unit, (TILE, heads, TILE)),
    )  # fmt: skip


def load_rows(tile: Tile, dst: nl.ndarray, src: nl.ndarray, heads: tuple) -> None:
    """Heads (first, last + 1) of the tile's tokens of [N, heads, D], zeros past the last token."""
    if tile.rows < TILE:
        nisa.memset(dst=dst, value=0.0, engine=nisa.engine.vector)
    start = tile.place * TILE
    nisa.dma_copy(dst=dst[0 : tile.rows], src=src[start : start + tile.rows, heads[0] : heads[1]])


def over_columns(table: nl.ndarray, place: int, heads: tuple, rows: tuple, columns: int) -> nl.ndarray:
    """Tile `place` of a table [128, T, H] as [rows, heads, columns], a head's columns all the same."""
    count, own = table.shape[1], table.shape[2]
    return table.ap(
        pattern=[[count * own, rows[1] - rows[0]], [1, heads[1] - heads[0]], [0, columns]],
        offset=rows[0] * count * own + place * own + heads[0],
    )  # fmt: skip


def normalise(tile: Tile, side: int) -> None:
    """Keys (side 0) or queries (side 1) of unit length."""
    key_heads = tile.kq.shape[2]
    rows, norm = tile.kq[:, side : side + 1].reshape((TILE, key_heads, TILE)), sbuf(nl.float32, (TILE, key_heads))
    square_sums(norm, rows, rows.dtype)
    to_power(norm, norm, L2_EPS, -0.5)
    for h in range(key_heads):
        nisa.tensor_scalar(
            dst=tile.unit[:, side : side + 1, h : h + 1], data=rows[:, h : h + 1], op0=nl.multiply,
            operand0=norm[:, h : h + 1], op1=nl.multiply, operand1=TILE**-0.5 if side == 1 else 1.0,
            engine=nisa.engine.vector,
        )  # fmt: skip


def mask_values(tile: Tile, gates: Gates) -> None:
    """`value`: what padding holds may not fit the type of the operands."""
    nisa.tensor_scalar(
        dst=tile.value, data=tile.v, op0=nl.multiply, operand0=gates.live[:, tile.place : tile.place + 1],
        engine=nisa.engine.scalar,
    )  # fmt: skip


def turn(tile: Tile, side: int, const: Constants, bank: Bank) -> None:
    """k^T or q^T."""
    for part in split(tile.kq.shape[2], 4):
        n = part[1] - part[0]
        psum = bank.take()[:, 0 : n * TILE]
        for h in range(n):
            data = tile.unit[:, side : side + 1, part[0] + h : part[0] + h + 1].reshape((TILE, TILE))
            turn_into(psum[:, h * TILE : (h + 1) * TILE], data, const.eye)
        nisa.tensor_copy(dst=tile.turned[:, side : side + 1, part[0] : part[1]], src=psum, engine=nisa.engine.scalar)


def open_gates(tile: Tile, gates: Gates) -> None:
    """`open`: row k of the second half keeps i >= k - 64."""
    heads = tile.v.shape[1]
    nisa.affine_select(
        dst=tile.open, pattern=[[0, heads], [1, HALF]], channel_multiplier=-1,
        on_true_tile=over_columns(gates.g, tile.place, (0, heads), (0, TILE), HALF), on_false_value=0.0,
        cmp_op=nl.greater_equal, offset=HALF,
    )  # fmt: skip


def triangle(dst: nl.ndarray, table: nl.ndarray, place: int, const: Constants) -> None:
    """A tile's row of a table [128, T, H] as [128, H, 64], zero where the column is less than the row."""
    heads = dst.shape[1]
    nisa.tensor_tensor(
        dst=dst, data1=const.upper.ap(pattern=[[HALF, TILE], [0, heads], [1, HALF]]),
        data2=over_columns(table, place, (0, heads), (0, TILE), HALF), op=nl.multiply, engine=nisa.engine.vector,
    )  # fmt: skip


def fade(tile: Tile, gates: Gates, const: Constants, bank: Bank) -> None:
    """`decay`: the sum of g over j < k <= i is a product of triangles."""
    for part in split(tile.v.shape[1], 8):
        n = part[1] - part[0]
        own, other = bank.take()[:, 0 : n * HALF], bank.take()[0:HALF, 0 : n * HALF]
        here, there = tile.decay[:, part[0] : part[1], 0:1], tile.decay[0:HALF, part[0] : part[1], 1:2]
        # [k, j] x [k, (h, i)] -> [j, (h, i)]
        nisa.nc_matmul(dst=own, stationary=const.near, moving=tile.close[:, part[0] : part[1]], accumulate=False)
        nisa.nc_matmul(
            dst=other, stationary=const.left[:, 0:HALF], moving=tile.open[:, part[0] : part[1]], accumulate=False
        )
        nisa.activation(dst=here, op=nl.exp, data=own)
        nisa.activation(dst=there, op=nl.exp, data=other)
        nisa.tensor_tensor(
            dst=here, data1=here, data2=tile.beta[:, part[0] : part[1]], op=nl.multiply, engine=nisa.engine.vector
        )
        beta = over_columns(gates.beta, tile.place, part, (0, HALF), HALF)
        nisa.tensor_tensor(dst=there, data1=there, data2=beta, op=nl.multiply, engine=nisa.engine.vector)


def system(tile: Tile, gates: Gates, const: Constants, bank: Bank) -> None:
    """L^T, from k k^T once a key head; and T of width 2, for which k k^T is at hand by rows of i too."""
    share = tile.v.shape[1] // tile.kq.shape[2]
    for part in split(tile.kq.shape[2], 4):
        psum = bank.take()
        for of in range(part[0], part[1]):
            _products(psum, (of - part[0]) * TILE, tile.turned[:, 0:1, of : of + 1], tile.turned[:, 0:1, of : of + 1])
        for of in range(part[0], part[1]):
            at, first, last = (of - part[0]) * TILE, of * share, (of + 1) * share
            _times(tile.lower[:, first:last], psum, (0, TILE), at, tile.decay[:, first:last, 0:1])
        _start(tile, part, psum, gates, const)
        width = psum.shape[1]
        nisa.tensor_copy(
            dst=tile.cross[:, part[0] : part[1]],
            src=psum.ap(pattern=[[width, HALF], [TILE, part[1] - part[0]], [1, HALF]], offset=HALF),
            engine=nisa.engine.scalar,
        )  # fmt: skip
    heads = tile.lower.shape[1]
    drop_where(tile.lower, [[0, heads], [1, HALF]], -1, HALF, 1.0)
    drop_where(tile.lower[0:HALF], [[0, heads], [1, HALF]], -1, 0, 1.0)


def score(tile: Tile, bank: Bank) -> None:
    """The scores, from q k^T once a key head."""
    share = tile.v.shape[1] // tile.kq.shape[2]
    for part in split(tile.kq.shape[2], 4):
        psum = bank.take()
        for of in range(part[0], part[1]):
            at, first, last = (of - part[0]) * TILE, of * share, (of + 1) * share
            _products(psum, at, tile.turned[:, 0:1, of : of + 1], tile.turned[:, 1:2, of : of + 1])
            decay = tile.decay[:, first:last]
            _times(tile.scores[0:HALF, first:last], psum, (0, HALF), at, decay[0:HALF])
            late = tile.scores[HALF:TILE, first:last, HALF:TILE]
            _times(late, psum, (HALF, TILE), at, decay[HALF:TILE, :, 0:1])


def _products(psum: nl.ndarray, at: int, keys: nl.ndarray, others: nl.ndarray) -> None:
    """[d, j] x [d, i] -> [j, i] compact in 64 columns, then those of j in the first half and i in the second.

    Rows of the second half are written by the other half of the array's columns.
    """
    early, late = keys[:, :, :, 0:HALF], keys[:, :, :, HALF:TILE]
    nisa.nc_matmul(dst=psum[0:HALF, at : at + TILE], stationary=early, moving=others, accumulate=False)
    nisa.nc_matmul(
        dst=psum[HALF:TILE, at : at + HALF], stationary=late, moving=others[:, :, :, HALF:TILE], accumulate=False,
        tile_position=(0, HALF), tile_size=(TILE, HALF),
    )  # fmt: skip


def _times(dst: nl.ndarray, psum: nl.ndarray, rows: tuple, at: int, decay: nl.ndarray) -> None:
    """64 columns of a bank, or 128, the same for every head, times the heads' decays."""
    width = psum.shape[1]
    columns = psum.ap(
        pattern=[[width, rows[1] - rows[0]], [0, decay.shape[1]], [1, decay.shape[2] * HALF]],
        offset=rows[0] * width + at,
    )  # fmt: skip
    nisa.tensor_tensor(dst=dst, data1=columns, data2=decay, op=nl.multiply, engine=nisa.engine.vector)


def _start(tile: Tile, part: tuple, psum: nl.ndarray, gates: Gates, const: Constants) -> None:
    """T of the diagonal blocks of width 2: minus k_i . k_(i-1) e^(g_i) beta_(i-1) left of the diagonal of odd rows."""
    share, n, columns = tile.v.shape[1] // tile.kq.shape[2], part[1] - part[0], HALF // 2
    heads = (part[0] * share, part[1] * share)
    pick, step = sbuf(tile.t.dtype, (TILE, n, columns)), sbuf(tile.t.dtype, (TILE, n * share, columns))
    nisa.tensor_tensor(
        dst=pick, data1=psum.ap(pattern=[[psum.shape[1], TILE], [TILE, n], [2, columns]], offset=0),
        data2=const.odd.ap(pattern=[[columns, TILE], [0, n], [1, columns]]), op=nl.multiply,
        engine=nisa.engine.vector,
    )  # fmt: skip
    nisa.tensor_tensor(
        dst=step, data1=pick.ap(pattern=[[n * columns, TILE], [columns, n], [0, share], [1, columns]]),
        data2=over_columns(gates.first, tile.place, heads, (0, TILE), columns), op=nl.multiply,
        engine=nisa.engine.vector,
    )  # fmt: skip
    nisa.tensor_tensor(
        dst=even_columns(tile.t[:, heads[0] : heads[1]], 1), data1=step,
        data2=const.even.ap(pattern=[[columns, TILE], [0, n * share], [1, columns]]), op=nl.add,
        engine=nisa.engine.vector,
    )  # fmt: skip
