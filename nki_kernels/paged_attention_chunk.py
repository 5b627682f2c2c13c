"""One chunk of keys and values under a few query rows: scores, maxima, weights and sums, for `paged_attention_decode`.

Scores have keys on partitions, one line of them a column of queries. The functions are stages, called in turn.
"""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import BANK_COLUMNS, TILE, Bank, sbuf, turn_into
from .paged_gather import Pages

SIZE = 256
SCALE = SIZE**-0.5
PART = 8
"""Lines of a chunk that one gather brings: products begin when the first are there."""
HELD_SUMS = 2
"""Sums that wait in PSUM while another chunk's maxima pass: three banks of seven for each group of rows."""
NOT_SEEN = -1.0e30


@dataclass
class Rows(nl.NKIObject):
    """Query rows (h, t): all new tokens of heads [head, head + heads) of sequence b, which share a key head.

    Attributes:
        turned: [d, 2, rows]. top, total: fp32 [rows, 1], running maximum and sum; out: fp32 [rows, 256].
    """

    b: int
    head: int
    heads: int
    rows: int
    turned: nl.ndarray
    top: nl.ndarray = None
    total: nl.ndarray = None
    out: nl.ndarray = None


@dataclass
class Chunk(nl.NKIObject):
    """Keys of one key head: a chunk of the table and, with the first, the new tokens.

    Attributes:
        rows: partitions that it fills. groups: the Rows that it is for.
        keys, values, turned: by part, [rows, n, 256] of both, and k^T [d, 2, n, rows].
        new, new_values: [d, 2, tokens] and [tokens, 256] of the new tokens, in the first chunk.
        unseen: fp32 [rows, lines], 0, or NOT_SEEN where no token is held.
        scores, weights: by group, [128, lines + 1, rows]; the first line is of the new tokens.
        fades: by group, fp32 [rows, 1], what terms under the old maximum are worth under the new one, from the second
            chunk on.
        tops: by group, fp32 [rows, rows], the running maximum on the diagonal. products: by group, p v in PSUM.
    """

    b: int
    head: int
    number: int
    rows: int
    groups: list
    keys: list
    values: list
    turned: list
    scores: list
    weights: list
    fades: list
    tops: list
    products: list
    new: nl.ndarray = None
    new_values: nl.ndarray = None
    unseen: nl.ndarray = None


@dataclass
class Decode(nl.NKIObject):
    """What all chunks share.

    Attributes:
        eye, eye32: identities, of the operands' type and fp32. ones: fp32 [128, 128].
        held: fp32 [128, B], tokens that the cache holds, every row the same.
        later: fp32 [tokens, heads, tokens], NOT_SEEN where new token j comes after new token i, else 0.
        place: fp32 [128, lines], place of each key in a chunk.
    """

    eye: nl.ndarray
    eye32: nl.ndarray
    ones: nl.ndarray
    held: nl.ndarray
    later: nl.ndarray
    place: nl.ndarray
    pages: Pages
    psum: Bank


def _turn_part(keys: nl.ndarray, const: Decode) -> nl.ndarray:
    """k^T of a part, [d, 2, n, rows]; VectorE and ScalarE evict in turns."""
    rows, n = keys.shape[0], keys.shape[1]
    turned = sbuf(keys.dtype, (TILE, 2, n, rows))
    for half in range(2):
        for at in range(0, n, 4):
            count = min(4, n - at)
            bank = const.psum.take()[:, 0 : count * rows]
            for line in range(count):
                data = keys[:, at + line : at + line + 1, half * TILE : (half + 1) * TILE].reshape((rows, TILE))
                turn_into(bank[:, line * rows : (line + 1) * rows], data, const.eye)
            nisa.tensor_copy(
                dst=turned[:, half : half + 1, at : at + count], src=bank,
                engine=nisa.engine.vector if half == 0 else nisa.engine.scalar,
            )  # fmt: skip
    return turned


def turn_keys(chunk: Chunk, const: Decode) -> None:
    """k^T of all parts, ahead of the queries."""
    for part in range(len(chunk.turned), len(chunk.keys)):
        chunk.turned.append(_turn_part(chunk.keys[part], const))


def score(chunk: Chunk, const: Decode) -> None:
    """k q^T, and NOT_SEEN added where a query may not look."""
    for group in chunk.groups:
        scores = sbuf(nl.float32, (TILE, const.pages.lines + 1, group.rows))
        empty = scores if chunk.rows < TILE else scores[:, 0:1]
        nisa.memset(dst=empty, value=NOT_SEEN, engine=nisa.engine.vector)
        chunk.scores.append(scores)
        if chunk.number == 0:
            _score_new(chunk, group, scores, const)
    # A part is transposed while the one before is evicted.
    for part in range(len(chunk.keys) + 1):
        if part < len(chunk.keys) and part == len(chunk.turned):
            chunk.turned.append(_turn_part(chunk.keys[part], const))
        if part > 0:
            for n in range(len(chunk.groups)):
                turned = chunk.turned[part - 1]
                _score_part(chunk, chunk.groups[n], chunk.scores[n], turned, (part - 1) * PART, const)


def _score_new(chunk: Chunk, group: Rows, scores: nl.ndarray, const: Decode) -> None:
    """New token i is seen by new tokens from i on."""
    tokens = chunk.new.shape[2]
    bank = const.psum.take()[0:tokens, 0 : group.rows]
    for half in range(2):
        # [d, j] x [d, (h, i)] -> [j, (h, i)]
        nisa.nc_matmul(
            dst=bank, stationary=chunk.new[:, half : half + 1], moving=group.turned[:, half : half + 1],
            accumulate=half > 0,
        )  # fmt: skip
    nisa.tensor_tensor(
        dst=scores[0:tokens, 0:1], data1=bank, data2=const.later[:, 0 : group.heads], op=nl.add,
        engine=nisa.engine.vector,
    )  # fmt: skip


def _score_part(chunk: Chunk, group: Rows, scores: nl.ndarray, turned: nl.ndarray, first: int, const: Decode) -> None:
    lines, rows = turned.shape[2], group.rows
    for at in range(0, lines, BANK_COLUMNS // rows):
        n = min(BANK_COLUMNS // rows, lines - at)
        bank = const.psum.take()[0 : chunk.rows, 0 : n * rows]
        for line in range(n):
            for half in range(2):
                # [d, j] x [d, i] -> [j, i]
                nisa.nc_matmul(
                    dst=bank[:, line * rows : (line + 1) * rows],
                    stationary=turned[:, half : half + 1, at + line : at + line + 1],
                    moving=group.turned[:, half : half + 1], accumulate=half > 0,
                )  # fmt: skip
        unseen = chunk.unseen.ap(pattern=[[const.pages.lines, chunk.rows], [1, n], [0, rows]], offset=first + at)
        nisa.tensor_tensor(
            dst=scores[0 : chunk.rows, 1 + first + at : 1 + first + at + n], data1=bank, data2=unseen, op=nl.add,
            engine=nisa.engine.vector,
        )  # fmt: skip


def find_top(chunk: Chunk, const: Decode) -> None:
    """The new maximum of every query, and what terms under the old one are worth."""
    lines, f32 = const.pages.lines + 1, nl.float32
    for n in range(len(chunk.groups)):
        group, rows = chunk.groups[n], chunk.groups[n].rows
        peak, top = sbuf(f32, (TILE, rows)), sbuf(f32, (rows, 1))
        by_query = chunk.scores[n].ap(pattern=[[lines * rows, TILE], [1, rows], [rows, lines]])
        nisa.tensor_reduce(dst=peak, op=nl.maximum, data=by_query, axis=2)
        over = const.psum.take()[0:rows, 0:TILE]
        nisa.nc_transpose(dst=over, data=peak)
        nisa.tensor_reduce(dst=top, op=nl.maximum, data=over, axis=1)
        if chunk.number > 0:
            nisa.tensor_tensor(dst=top, data1=top, data2=group.top, op=nl.maximum, engine=nisa.engine.vector)
            less, fade = sbuf(f32, (rows, 1)), sbuf(f32, (rows, 1))
            nisa.tensor_tensor(dst=less, data1=group.top, data2=top, op=nl.subtract, engine=nisa.engine.vector)
            nisa.activation(dst=fade, op=nl.exp, data=less, scale=SCALE)
            chunk.fades.append(fade)
        group.top = top
        diagonal = sbuf(f32, (rows, rows))
        nisa.tensor_scalar(
            dst=diagonal, data=const.eye32[0:rows, 0:rows], op0=nl.multiply, operand0=top, engine=nisa.engine.vector
        )
        chunk.tops.append(diagonal)


def weigh(chunk: Chunk, const: Decode) -> None:
    """p = e^((s - m) / 16)."""
    lines, f32 = const.pages.lines + 1, nl.float32
    for n in range(len(chunk.groups)):
        rows, dt = chunk.groups[n].rows, chunk.groups[n].turned.dtype
        every = const.psum.take()[:, 0:rows]
        # Ones times a diagonal: every partition gets the maxima of all queries.
        nisa.nc_matmul(
            dst=every, stationary=const.ones[0:rows], moving=chunk.tops[n], is_stationary_onezero=True,
            accumulate=False,
        )  # fmt: skip
        shifted, weights = sbuf(f32, (TILE, lines, rows)), sbuf(dt, (TILE, lines, rows))
        repeated = every.ap(pattern=[[BANK_COLUMNS, TILE], [0, lines], [1, rows]])
        nisa.tensor_tensor(
            dst=shifted, data1=chunk.scores[n], data2=repeated, op=nl.subtract, engine=nisa.engine.vector
        )
        nisa.activation(dst=weights, op=nl.exp, data=shifted, scale=SCALE)
        chunk.weights.append(weights)


def multiply_first(chunk: Chunk, const: Decode) -> None:
    """p v over the new tokens and the first part, while VectorE finds the next chunk's maximum.

    Only where PSUM has room for the sums until then.
    """
    if len(chunk.groups) <= HELD_SUMS:
        for n in range(len(chunk.groups)):
            _begin_product(chunk, n, const)


def _begin_product(chunk: Chunk, n: int, const: Decode) -> None:
    chunk.products.append(const.psum.take()[0 : chunk.groups[n].rows, 0:SIZE])
    if chunk.number == 0:
        tokens = chunk.new_values.shape[0]
        nisa.nc_matmul(
            dst=chunk.products[n], stationary=chunk.weights[n][0:tokens, 0:1], moving=chunk.new_values,
            accumulate=False,
        )  # fmt: skip
    _multiply_part(chunk, n, 0)


def _multiply_part(chunk: Chunk, n: int, part: int) -> None:
    values = chunk.values[part]
    for at in range(values.shape[1]):
        # [j, i] x [j, v] -> [i, v]
        line = 1 + part * PART + at
        nisa.nc_matmul(
            dst=chunk.products[n], stationary=chunk.weights[n][0 : chunk.rows, line : line + 1],
            moving=values[:, at : at + 1], accumulate=chunk.number == 0 or line > 1,
        )  # fmt: skip


def multiply_rest(chunk: Chunk, const: Decode) -> None:
    """The other parts, then l <- fade l + sum(p) and o <- fade o + p v."""
    lines, f32 = const.pages.lines + 1, nl.float32
    for n in range(len(chunk.groups)):
        group, rows, weights = chunk.groups[n], chunk.groups[n].rows, chunk.weights[n]
        sums, total = sbuf(f32, (TILE, rows)), const.psum.take()[0:rows, 0:1]
        by_query = weights.ap(pattern=[[lines * rows, TILE], [1, rows], [rows, lines]])
        nisa.tensor_reduce(dst=sums, op=nl.add, data=by_query, axis=2)
        if len(chunk.groups) > HELD_SUMS:
            _begin_product(chunk, n, const)
        for part in range(1, len(chunk.values)):
            _multiply_part(chunk, n, part)
        nisa.nc_matmul(dst=total, stationary=sums, moving=const.ones[:, 0:1], is_moving_onezero=True, accumulate=False)
        new_total, out = sbuf(f32, (rows, 1)), sbuf(f32, (rows, SIZE))
        if chunk.number == 0:
            nisa.tensor_copy(dst=new_total, src=total, engine=nisa.engine.vector)
            nisa.tensor_copy(dst=out, src=chunk.products[n], engine=nisa.engine.vector)
        else:
            fade = chunk.fades[n]
            nisa.scalar_tensor_tensor(
                dst=new_total, data=group.total, op0=nl.multiply, operand0=fade, op1=nl.add, operand1=total
            )
            nisa.scalar_tensor_tensor(
                dst=out, data=group.out, op0=nl.multiply, operand0=fade, op1=nl.add, operand1=chunk.products[n]
            )
        group.total = new_total
        group.out = out
