"""Causal attention with head size 256 over a paged prefix and new tokens: prompts, single tokens and drafts alike."""

from dataclasses import dataclass

import nki
import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import Bank, identity, make_banks, sbuf, turn_into
from .paged_attention_decode import attend_few, tokens_held
from .paged_gather import BLOCK, Pages, find_pages, gather_lines, rows_of_chunk

ROWS = 128
SIZE = 256
KEYS = 512
"""Keys of a chunk: what one PSUM bank holds of a query's scores."""
LOWEST = -3.0e38


@nki.jit
def paged_attention(
    q: nl.ndarray,
    k: nl.ndarray,
    v: nl.ndarray,
    k_cache: nl.ndarray,
    v_cache: nl.ndarray,
    table: nl.ndarray,
    start: nl.ndarray,
) -> nl.ndarray:
    """softmax(q K^T / 16) V, K and V being a sequence's first `start` tokens from the cache, then its new tokens.

    Keys go through in chunks of 512, turned once for all queries; a running maximum and sum keep the softmax exact
    (Milakov and Gimelshein, "Online normalizer calculation for softmax"). Scores add up over the two halves of the head
    in PSUM. New tokens come first, so that no row is without a key when the prefix is masked.

    Dimensions:
        B: sequences
        N: new tokens of each; one token or drafts decode, more are a prompt. N at most 128 or a multiple of it
        HQ, HK: query and key heads, HQ a multiple of HK; with two cores each takes half of the query heads
        P: blocks of 64 tokens that a row of the table can name

    Args:
        q (nl.ndarray): [B, N, HQ, 256], float32 or bfloat16, which is also the type of the operands
        k (nl.ndarray): [B, N, HK, 256], keys of the new tokens, of q's type
        v (nl.ndarray): [B, N, HK, 256], values of the new tokens, of q's type
        k_cache (nl.ndarray): [blocks, 64, HK, 256], of q's type
        v_cache (nl.ndarray): [blocks, 64, HK, 256], of q's type
        table (nl.ndarray): [B, P], int32, blocks of each sequence in order; unused entries name any block, all finite
        start (nl.ndarray): [1, B], int32, tokens of each sequence that the cache holds, at most 64 * P

    Returns:
        o (nl.ndarray): [B, N, HQ, 256], of q's type

    Notes:
        Up to 127 new tokens go through `attend_few`. Of more, a tile of query rows is 128 tokens of one head.

    Pseudocode:
        for each chunk of keys: new tokens first, then blocks of the table
            s = q k^T, masked
            m' = max(m, max(s)); p = e^((s - m') / 16)
            l = l e^((m - m') / 16) + sum(p); o = o e^((m - m') / 16) + p v; m = m'
        o = o / l
    """
    batch, tokens, heads, size = q.shape
    key_heads = k.shape[2]
    cores = nl.num_programs()
    assert size == SIZE, f"head size is {size}, must be {SIZE}"
    assert tokens <= ROWS or tokens % ROWS == 0, f"{tokens} new tokens, must be at most {ROWS} or a multiple of it"
    assert heads % key_heads == 0, f"{heads} query heads do not divide among {key_heads} key heads"
    assert heads % cores == 0, f"{heads} query heads do not divide among {cores} cores"
    own = heads // cores
    first = nl.program_id(0) * own if cores > 1 else 0
    share = heads // key_heads
    o = nl.ndarray((batch, tokens, heads, size), dtype=q.dtype, buffer=nl.shared_hbm)

    if tokens < ROWS:
        attend_few(q, k, v, k_cache, v_cache, table, start, o, first, own)
        return o
    psum, eye = make_banks(), identity(q.dtype)
    pages, held = find_pages(table, KEYS // BLOCK, psum), tokens_held(start, psum)
    work: list = []
    tiles: list = []
    for b in range(batch):
        for head in range(first // share, (first + own - 1) // share + 1):
            begin, end = max(first, head * share), min(first + own, (head + 1) * share)
            mine = _load_queries(q, b, begin, end, eye, psum)
            for at in range(0, tokens, KEYS):
                lines = min(KEYS, tokens - at) // ROWS
                chunk = Keys(b=b, head=head, start=at, chunk=-1, rows=ROWS, lines=lines, across=1, along=ROWS)
                _plan_new(work, mine, chunk)
            for c in range(pages.chunks):
                chunk = Keys(
                    b=b, head=head, start=c * pages.blocks * BLOCK, chunk=c, rows=rows_of_chunk(pages, c),
                    lines=pages.lines, across=pages.lines, along=1,
                )  # fmt: skip
                _plan_held(work, mine, chunk, held[:, b : b + 1])
            for n in range(len(mine)):
                tiles.append(mine[n])
    # Each piece of work takes six turns, one stage a turn: what one waits for, the stages of others fill.
    for turn in range(len(work) + 6):
        if turn < len(work):
            _load_keys(work[turn].keys, k, v, k_cache, v_cache, pages)
        if turn >= 2 and turn - 2 < len(work):
            _turn_keys(work[turn - 2].keys, eye, psum)
        if turn >= 3 and turn - 3 < len(work):
            _score(work[turn - 3], psum)
        if turn >= 4 and turn - 4 < len(work):
            _weigh(work[turn - 4])
        if turn >= 5 and turn - 5 < len(work):
            _turn_weights(work[turn - 5], eye, psum)
        if turn >= 6:
            _gather(work[turn - 6], psum)
    for n in range(len(tiles)):
        _finish(tiles[n], o)
    return o


@dataclass
class Queries(nl.NKIObject):
    """A tile of query rows: tokens [first, first + 128) of a head of sequence b.

    Attributes:
        turned: [d, 2, 128]. limit: fp32 [128, 1], new tokens that each row sees.
        top: fp32 [128, 1], running maximum. out: fp32 [128, 257], running output, and the running sum beside it.
    """

    b: int
    head: int
    first: int
    turned: nl.ndarray
    limit: nl.ndarray
    top: nl.ndarray
    out: nl.ndarray


@dataclass
class Keys(nl.NKIObject):
    """A chunk: rows * lines keys from position `start` on of key head `head` of sequence b.

    Attributes:
        chunk: its number in the table; -1: new tokens.
        across, along: the key in row p of line n is the chunk's p * across + n * along.
        raw: [rows, lines, 256]. values: [rows, lines, 257], the last column 1. turned: k^T, [d, 2, rows * lines], in
            order.
    """

    b: int
    head: int
    start: int
    chunk: int
    rows: int
    lines: int
    across: int
    along: int
    loaded: bool = False
    transposed: bool = False
    raw: nl.ndarray = None
    values: nl.ndarray = None
    turned: nl.ndarray = None


@dataclass
class Work(nl.NKIObject):
    """One tile of queries against one chunk of keys.

    Attributes:
        limit: fp32 [128, 1], positions below it count. lines: lines of the chunk of which any is seen.
        scores: fp32 [128, keys], masked. bias: fp32 [128, 1], minus the new maximum, scaled.
        before: fp32 [128, 1], the maximum before it. fade: fp32 [128, 1], what terms under it are
            worth under the new one.
        weights: [128, keys], e^((s - m) / 16). turned: [j, lines, 128].
    """

    tile: Queries
    keys: Keys
    limit: nl.ndarray
    lines: int
    scores: nl.ndarray = None
    bias: nl.ndarray = None
    before: nl.ndarray = None
    fade: nl.ndarray = None
    weights: nl.ndarray = None
    turned: nl.ndarray = None


def _load_queries(q: nl.ndarray, b: int, begin: int, end: int, eye: nl.ndarray, psum: Bank) -> list:
    tokens, heads, dt, f32 = q.shape[1], q.shape[2], q.dtype, nl.float32
    tiles = []
    for head in range(begin, end):
        for first in range(0, tokens, ROWS):
            raw, turned, limit = sbuf(dt, (ROWS, SIZE)), sbuf(dt, (ROWS, 2, ROWS)), sbuf(f32, (ROWS, 1))
            place = q.ap(pattern=[[heads * SIZE, ROWS], [1, SIZE]], offset=((b * tokens + first) * heads + head) * SIZE)
            nisa.dma_copy(dst=raw, src=place)
            nisa.iota(dst=limit, pattern=[[0, 1]], offset=first + 1, channel_multiplier=1)
            bank = psum.take()[:, 0 : 2 * ROWS]
            for half in range(2):
                turn_into(bank[:, half * ROWS : (half + 1) * ROWS], raw[:, half * ROWS : (half + 1) * ROWS], eye)
            nisa.tensor_copy(dst=turned, src=bank, engine=nisa.engine.vector)
            top, out = sbuf(f32, (ROWS, 1)), sbuf(f32, (ROWS, SIZE + 1))
            nisa.memset(dst=top, value=LOWEST, engine=nisa.engine.gpsimd)
            nisa.memset(dst=out, value=0.0, engine=nisa.engine.gpsimd)
            tiles.append(Queries(b=b, head=head, first=first, turned=turned, limit=limit, top=top, out=out))
    return tiles


def _plan_new(work: list, tiles: list, keys: Keys) -> None:
    """Every tile that sees any of the new tokens of the chunk."""
    for n in range(len(tiles)):
        seen = min(keys.lines, (tiles[n].first - keys.start) // ROWS + 1)
        if seen > 0:
            work.append(Work(tile=tiles[n], keys=keys, limit=tiles[n].limit, lines=seen))


def _plan_held(work: list, tiles: list, keys: Keys, held: nl.ndarray) -> None:
    """Every tile sees the chunk's tokens below `held`, [128, 1]."""
    for n in range(len(tiles)):
        work.append(Work(tile=tiles[n], keys=keys, limit=held, lines=keys.lines))


def _load_keys(
    keys: Keys, k: nl.ndarray, v: nl.ndarray, k_cache: nl.ndarray, v_cache: nl.ndarray, pages: Pages
) -> None:
    """Read a chunk that has not been read."""
    if keys.loaded:
        return
    keys.loaded = True
    keys.raw = sbuf(k.dtype, (keys.rows, keys.lines, SIZE))
    keys.values = sbuf(k.dtype, (keys.rows, keys.lines, SIZE + 1))
    nisa.memset(dst=keys.values[:, :, SIZE : SIZE + 1], value=1.0, engine=nisa.engine.gpsimd)
    values = keys.values[:, :, 0:SIZE]
    if keys.chunk < 0:
        row = k.shape[2] * SIZE
        pattern = [[row, ROWS], [ROWS * row, keys.lines], [1, SIZE]]
        offset = (keys.b * k.shape[1] + keys.start) * row + keys.head * SIZE
        nisa.dma_copy(dst=keys.raw, src=k.ap(pattern=pattern, offset=offset))
        nisa.dma_copy(dst=values, src=v.ap(pattern=pattern, offset=offset))
        return
    gather_lines(keys.raw, k_cache, pages, keys.b, keys.chunk, keys.head, 0)
    gather_lines(values, v_cache, pages, keys.b, keys.chunk, keys.head, 0)


def _turn_keys(keys: Keys, eye: nl.ndarray, psum: Bank) -> None:
    """k^T of a chunk that has not been turned, in order of position."""
    if keys.transposed:
        return
    keys.transposed = True
    rows, lines = keys.rows, keys.lines
    size = rows * lines
    keys.turned = sbuf(keys.raw.dtype, (ROWS, 2, size))
    for half in range(2):
        bank = psum.take()[:, 0:size]
        for n in range(lines):
            data = keys.raw[:, n : n + 1, half * ROWS : (half + 1) * ROWS].reshape((rows, ROWS))
            turn_into(bank[:, n * rows : (n + 1) * rows], data, eye)
        ordered = [[2 * size, ROWS], [keys.along, lines], [keys.across, rows]]
        nisa.tensor_copy(dst=keys.turned.ap(pattern=ordered, offset=half * size), src=bank, engine=nisa.engine.vector)


def _score(work: Work, psum: Bank) -> None:
    """Masked scores and the new maximum."""
    tile, keys, f32, scale = work.tile, work.keys, nl.float32, SIZE**-0.5
    size = keys.rows * work.lines
    bank, highest, top = psum.take()[:, 0:size], sbuf(f32, (ROWS, 1)), sbuf(f32, (ROWS, 1))
    for half in range(2):
        # [d, i] x [d, j] -> [i, j]
        nisa.nc_matmul(
            dst=bank, stationary=tile.turned[:, half : half + 1], moving=keys.turned[:, half : half + 1, 0:size],
            accumulate=half > 0,
        )  # fmt: skip
    work.scores = sbuf(f32, (ROWS, size))
    nisa.range_select(
        dst=work.scores, on_true_tile=bank, comp_op0=nl.less, comp_op1=nl.less, bound0=work.limit, bound1=work.limit,
        reduce_cmd=nisa.reduce_cmd.reset_reduce, reduce_res=highest, reduce_op=nl.maximum, range_start=keys.start,
    )  # fmt: skip
    work.bias = sbuf(f32, (ROWS, 1))
    nisa.tensor_tensor(dst=top, data1=tile.top, data2=highest, op=nl.maximum)
    nisa.tensor_scalar(dst=work.bias, data=top, op0=nl.multiply, operand0=-scale, engine=nisa.engine.vector)
    work.before = tile.top
    tile.top = top


def _weigh(work: Work) -> None:
    """p = e^((s - m) / 16), and what the old maximum's terms are worth."""
    work.fade = sbuf(nl.float32, (ROWS, 1))
    work.weights = sbuf(work.keys.values.dtype, work.scores.shape)
    nisa.activation(dst=work.weights, op=nl.exp, data=work.scores, bias=work.bias, scale=SIZE**-0.5)
    nisa.activation(dst=work.fade, op=nl.exp, data=work.before, bias=work.bias, scale=SIZE**-0.5)


def _turn_weights(work: Work, eye: nl.ndarray, psum: Bank) -> None:
    """p^T, [j, lines, i]."""
    keys, dt = work.keys, work.weights.dtype
    bank = psum.take()[0 : keys.rows, 0 : work.lines * ROWS]
    work.turned = sbuf(dt, (keys.rows, work.lines, ROWS))
    for n in range(work.lines):
        line = [[keys.rows * work.lines, ROWS], [keys.across, keys.rows]]
        data = work.weights.ap(pattern=line, offset=n * keys.along)
        turn_into(bank[:, n * ROWS : (n + 1) * ROWS], data, eye)
    nisa.tensor_copy(dst=work.turned, src=bank, engine=nisa.engine.scalar)


def _gather(work: Work, psum: Bank) -> None:
    """o <- fade o + p v; the sum of p comes with it, as the product with a column of ones."""
    tile = work.tile
    product, out = psum.take()[:, 0 : SIZE + 1], sbuf(nl.float32, (ROWS, SIZE + 1))
    for n in range(work.lines):
        # [j, i] x [j, v] -> [i, v]
        nisa.nc_matmul(
            dst=product, stationary=work.turned[:, n : n + 1], moving=work.keys.values[:, n : n + 1], accumulate=n > 0
        )
    nisa.scalar_tensor_tensor(dst=out, data=tile.out, op0=nl.multiply, operand0=work.fade, op1=nl.add, operand1=product)
    tile.out = out


def _finish(tile: Queries, o: nl.ndarray) -> None:
    """o / l, to HBM."""
    inverse, out, heads = sbuf(nl.float32, (ROWS, 1)), sbuf(o.dtype, (ROWS, SIZE)), o.shape[2]
    nisa.reciprocal(dst=inverse, data=tile.out[:, SIZE : SIZE + 1])
    nisa.tensor_scalar(dst=out, data=tile.out[:, 0:SIZE], op0=nl.multiply, operand0=inverse, engine=nisa.engine.vector)
    offset = ((tile.b * o.shape[1] + tile.first) * heads + tile.head) * SIZE
    nisa.dma_copy(dst=o.ap(pattern=[[heads * SIZE, ROWS], [1, SIZE]], offset=offset), src=out)
