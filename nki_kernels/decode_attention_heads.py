"""Queries, keys, values and gates of a decode step's attention, from the rows of its projection. Compiles into kernels.

Channels go to partitions first: few rows are then few columns, whatever the heads are, and norms and rotations take a
few instructions of a few columns each.
"""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .delta_rule_masks import keep_where
from .delta_rule_tiles import BANK_COLUMNS, TILE, Bank, sbuf, split, to_power, turn_into
from .paged_attention_chunk import SIZE

HALVES = SIZE // TILE
SENT = 16
"""Partitions that NKI 0.3's sendrecv moves a multiple of."""


@dataclass
class Sizes(nl.NKIObject):
    """Sequences, new tokens of each and of all, a rank's query heads, key heads, and query heads of a key head."""

    batch: int
    tokens: int
    rows: int
    heads: int
    key_heads: int
    share: int


@dataclass
class Tables(nl.NKIObject):
    """What norms and rotations multiply with.

    Attributes:
        factor: fp32 [128, 2, key heads + heads], the norms' full factors, by half of a head: keys, then queries.
        turns: fp32 [128, 2, rows], cosines and sines by channel of the first half, 1 and 0 where it is not rotated;
            sines with the sign that they get.
        swap: fp32 [128, 128], exchanges a channel with the one that it is rotated with; zero where it is not.
        mean: fp32 [128, 128], 1 / 256 everywhere.
    """

    factor: nl.ndarray
    turns: nl.ndarray
    swap: nl.ndarray
    mean: nl.ndarray


@dataclass
class Projected(nl.NKIObject):
    """The projection's rows, fp32 [rows or more, channels / cores] of each core, in order of the cores."""

    parts: list
    rows: int

    def columns(self, first: int, count: int) -> nl.ndarray:
        """Channels [first, first + count), which one core has."""
        own = self.parts[0].shape[1]
        at = first % own
        return self.parts[first // own][0 : self.rows, at : at + count]


def to_send(rows: int, columns: int, cores: int) -> nl.ndarray:
    """fp32 [rows or more, columns] that may be sent to the other core: 16 partitions or a multiple, all defined."""
    if cores == 1 or rows % SENT == 0:
        return sbuf(nl.float32, (rows, columns))
    out = sbuf(nl.float32, ((rows + SENT - 1) // SENT * SENT, columns))
    nisa.memset(dst=out, value=0.0, engine=nisa.engine.gpsimd)
    return out


def make_tables(
    of: Sizes, q_factor: nl.ndarray, k_factor: nl.ndarray, cos: nl.ndarray, sin: nl.ndarray, psum: Bank
) -> Tables:
    """From the arguments of `decode_attention`."""
    f32, vector, pool = nl.float32, nisa.engine.vector, nisa.dge_mode.swdge
    rows, pairs = cos.shape
    given, turns = sbuf(f32, (TILE, 2, HALVES)), sbuf(cos.dtype, (rows, 2, pairs))
    nisa.dma_copy(dst=turns[:, 0:1], src=cos, dge_mode=pool)
    nisa.dma_copy(dst=turns[:, 1:2], src=sin, dge_mode=pool)
    nisa.dma_copy(dst=given[:, 0:1], src=k_factor, dge_mode=pool)
    nisa.dma_copy(dst=given[:, 1:2], src=q_factor, dge_mode=pool)
    mean, swap, wide = sbuf(f32, (TILE, TILE)), sbuf(f32, (TILE, TILE)), sbuf(f32, (rows, 2, TILE))
    nisa.memset(dst=mean, value=1.0 / SIZE, engine=nisa.engine.gpsimd)
    nisa.memset(dst=swap, value=0.0, engine=nisa.engine.gpsimd)
    nisa.memset(dst=swap[:, 0 : 2 * pairs], value=1.0, engine=nisa.engine.gpsimd)
    for side in range(2):
        # Column c takes row c + pairs, column pairs + c row c.
        here, offset = swap[:, side * pairs : (side + 1) * pairs], -pairs if side == 0 else 0
        keep_where(here, [[-1, pairs]], 1, offset, 0.0)
        keep_where(here, [[1, pairs]], -1, -offset, 0.0)
    nisa.memset(dst=wide[:, 0:1], value=1.0, engine=nisa.engine.gpsimd)
    nisa.memset(dst=wide[:, 1:2], value=0.0, engine=nisa.engine.gpsimd)
    by_side = wide[:, 0:1, 0 : 2 * pairs].reshape((rows, 2, pairs))
    twice = turns.ap(pattern=[[2 * pairs, rows], [0, 2], [1, pairs]])
    nisa.tensor_copy(dst=by_side, src=twice, engine=vector)
    first, second = wide[:, 1:2, 0:pairs], wide[:, 1:2, pairs : 2 * pairs]
    nisa.tensor_scalar(dst=first, data=turns[:, 1:2], op0=nl.multiply, operand0=-1.0, engine=vector)
    nisa.tensor_copy(dst=second, src=turns[:, 1:2], engine=vector)
    out, bank = sbuf(f32, (TILE, 2, rows)), psum.take()[:, 0 : 2 * rows]
    for n in range(2):
        nisa.nc_transpose(dst=bank[:, n * rows : (n + 1) * rows], data=wide[:, n : n + 1].reshape((rows, TILE)))
    nisa.tensor_copy(dst=out, src=bank, engine=vector)
    count = of.key_heads + of.heads
    factor = sbuf(f32, (TILE, HALVES, count))
    for n in range(2):
        first_head, heads = (0, of.key_heads) if n == 0 else (of.key_heads, of.heads)
        every = given.ap(pattern=[[2 * HALVES, TILE], [1, HALVES], [0, heads]], offset=n * HALVES)
        nisa.tensor_copy(dst=factor[:, :, first_head : first_head + heads], src=every, engine=vector)
    return Tables(factor=factor, turns=out, swap=swap, mean=mean)


def _over_heads(tables: Tables, which: int, heads: int) -> nl.ndarray:
    """Cosines or sines as [128, heads, rows], every head the same."""
    rows = tables.turns.shape[2]
    return tables.turns.ap(pattern=[[2 * rows, TILE], [0, heads], [1, rows]], offset=which * rows)


def turn_heads(projected: Projected, heads: list, psum: Bank) -> nl.ndarray:
    """Heads of the projection, by number, in PSUM as fp32 [128, (half, head, row)]: a channel a partition."""
    rows = projected.rows
    bank = psum.take()[:, 0 : HALVES * len(heads) * rows]
    for half in range(HALVES):
        for n in range(len(heads)):
            at = (half * len(heads) + n) * rows
            data = projected.columns(heads[n] * SIZE + half * TILE, TILE)
            # [r, d] -> [d, r]
            nisa.nc_transpose(dst=bank[:, at : at + rows], data=data)
    return bank


def heads_at_once(count: int, rows: int) -> list:
    """(first, last + 1) of as many heads as a bank holds."""
    return split(count, BANK_COLUMNS // (HALVES * rows))


def rotate(of: Sizes, projected: Projected, tables: Tables, dtype: nl.dtype, eps: float, psum: Bank) -> tuple:
    """Keys [128, 2, key heads, rows] and queries [128, 2, (b, head, t)], normed and rotated, of the cache's type."""
    keys = sbuf(dtype, (TILE, HALVES, of.key_heads, of.rows))
    queries = sbuf(dtype, (TILE, HALVES, of.batch * of.heads * of.tokens))
    numbers = []
    for n in range(of.key_heads):
        numbers.append(2 * of.heads + n)
    for n in range(of.heads):
        numbers.append(n)
    for part in heads_at_once(len(numbers), of.rows):
        first, last = part
        scaled, root = _norm_and_rotate(of, projected, tables, numbers[first:last], first, eps, psum)
        middle = min(max(first, of.key_heads), last)
        if middle > first:
            _leave(keys[:, :, first:middle], scaled, root, 0, middle - first)
        if last > middle:
            begin, count = middle - of.key_heads, last - middle
            for b in range(of.batch):
                at = (b * of.heads + begin) * of.tokens
                _leave(
                    queries[:, :, at : at + count * of.tokens], scaled, root, middle - first, count, b * of.tokens,
                    of.tokens,
                )  # fmt: skip
    return keys, queries


def _leave(
    dst: nl.ndarray, scaled: nl.ndarray, root: nl.ndarray, first: int, count: int, row: int = 0, rows: int = 0
) -> None:
    """dst [128, 2, count, rows] = scaled * root of heads from `first` on, and of so many rows, or all."""
    heads, every = scaled.shape[2], scaled.shape[3]
    rows = rows if rows > 0 else every
    width, at = heads * every, first * every + row
    data = scaled.ap(pattern=[[HALVES * width, TILE], [width, HALVES], [every, count], [1, rows]], offset=at)
    roots = root.ap(pattern=[[width, TILE], [0, HALVES], [every, count], [1, rows]], offset=at)
    nisa.tensor_tensor(dst=dst, data1=data, data2=roots, op=nl.multiply, engine=nisa.engine.vector)


def _norm_and_rotate(
    of: Sizes, projected: Projected, tables: Tables, numbers: list, first: int, eps: float, psum: Bank
) -> tuple:
    """Heads times their factor, rotated, [128, 2, heads, rows], and what they are still to be multiplied with.

    The root is the same for all channels of a head, so the rotation need not wait for it.
    """
    count, rows, f32, vector = len(numbers), of.rows, nl.float32, nisa.engine.vector
    width = count * rows
    raw, squares = sbuf(f32, (TILE, HALVES, width)), sbuf(f32, (TILE, HALVES, width))
    nisa.tensor_copy(dst=raw, src=turn_heads(projected, numbers, psum), engine=vector)
    nisa.tensor_tensor(dst=squares, data1=raw, data2=raw, op=nl.multiply, engine=vector)
    total, root = psum.take()[:, 0:width], sbuf(f32, (TILE, count, rows))
    for half in range(HALVES):
        # Means over channels, on every partition: [d, d'] x [d, (h, r)] -> [d', (h, r)]
        nisa.nc_matmul(dst=total, stationary=tables.mean, moving=squares[:, half : half + 1], accumulate=half > 0)
    scaled = sbuf(f32, (TILE, HALVES, count, rows))
    every = tables.factor.shape[2]
    factors = tables.factor.ap(
        pattern=[[HALVES * every, TILE], [every, HALVES], [1, count], [0, rows]], offset=first
    )  # fmt: skip
    nisa.tensor_tensor(dst=scaled, data1=raw, data2=factors, op=nl.multiply, engine=vector)
    # [d, d'] x [d, (h, r)] -> [d', (h, r)]
    swapped, turned = psum.take()[:, 0:width], sbuf(f32, (TILE, width))
    near = scaled[:, 0:1].reshape((TILE, width))
    nisa.nc_matmul(
        dst=swapped, stationary=tables.swap, moving=near, is_stationary_onezero=True, accumulate=False
    )  # fmt: skip
    cosines, sines = _over_heads(tables, 0, count), _over_heads(tables, 1, count)
    nisa.tensor_tensor(dst=near, data1=near, data2=cosines, op=nl.multiply, engine=vector)
    nisa.tensor_tensor(dst=turned, data1=swapped, data2=sines, op=nl.multiply, engine=vector)
    nisa.tensor_tensor(dst=near, data1=near, data2=turned, op=nl.add, engine=vector)
    to_power(root, total, eps, -0.5)
    return scaled, root


def open_gates(of: Sizes, projected: Projected, psum: Bank) -> nl.ndarray:
    """sigmoid(gate), fp32 [128, 2, heads, rows]."""
    out = sbuf(nl.float32, (TILE, HALVES, of.heads, of.rows))
    for part in heads_at_once(of.heads, of.rows):
        first, last = part
        numbers = []
        for n in range(first, last):
            numbers.append(of.heads + n)
        nisa.activation(dst=out[:, :, first:last], op=nl.sigmoid, data=turn_heads(projected, numbers, psum))
    return out


def key_rows(of: Sizes, keys: nl.ndarray, eye: nl.ndarray, psum: Bank) -> nl.ndarray:
    """Keys with tokens on partitions again, [rows, key heads * 256], bit for bit."""
    out = sbuf(keys.dtype, (of.rows, of.key_heads * SIZE))
    for part in split(of.key_heads, BANK_COLUMNS // SIZE):
        bank = psum.take()[0 : of.rows, 0 : (part[1] - part[0]) * SIZE]
        for n in range(part[0], part[1]):
            for half in range(HALVES):
                at = (n - part[0]) * SIZE + half * TILE
                data = keys[:, half : half + 1, n : n + 1].reshape((TILE, of.rows))
                turn_into(bank[:, at : at + TILE], data, eye)
        nisa.tensor_copy(dst=out[:, part[0] * SIZE : part[1] * SIZE], src=bank, engine=nisa.engine.scalar)
    return out


def value_rows(of: Sizes, projected: Projected, dtype: nl.dtype) -> nl.ndarray:
    """Values [rows, key heads * 256], rounded."""
    out = sbuf(dtype, (of.rows, of.key_heads * SIZE))
    data = projected.columns((2 * of.heads + of.key_heads) * SIZE, of.key_heads * SIZE)
    nisa.tensor_copy(dst=out, src=data, engine=nisa.engine.scalar)
    return out
