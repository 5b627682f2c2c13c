"""Causal attention with head size 256 over a paged prefix and new tokens: prompts, single tokens and drafts alike."""

from dataclasses import dataclass

import nki
import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import Bank, identity, index_tiles, make_banks, sbuf, turn_into
from .paged_attention_decode import attend_few

ROWS = 128
SIZE = 256
BLOCK = 64
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
        A tile of 128 query rows is 128 tokens of one head, or all tokens of several heads when there are few.

    Pseudocode:
        for each chunk of keys: new tokens first, then blocks of the table
            s = q k^T, masked
            m' = max(m, max(s)); p = e^((s - m') / 16)
            l = l e^((m - m') / 16) + sum(p); o = o e^((m - m') / 16) + p v; m = m'
        o = o / l
    """
    batch, tokens, heads, size = q.shape
    key_heads, blocks = k.shape[2], table.shape[1]
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
    names = index_tiles(table.reshape((1, batch * blocks)), batch * blocks, nisa.engine.gpsimd)
    work: list = []
    tiles: list = []
    for b in range(batch):
        held = sbuf(nl.float32, (ROWS, 1))
        nisa.dma_copy(dst=held, src=start.ap(pattern=[[0, ROWS], [1, 1]], offset=b))
        for head in range(first // share, (first + own - 1) // share + 1):
            begin, end = max(first, head * share), min(first + own, (head + 1) * share)
            mine = _load_queries(q, b, begin, end, eye, psum)
            for at in range(0, tokens, KEYS):
                chunk = Keys(b=b, head=head, start=at, count=min(KEYS, tokens - at), entry=-1)
                _plan_new(work, mine, chunk)
            for at in range(0, blocks * BLOCK, KEYS):
                entry = b * blocks + at // BLOCK
                chunk = Keys(b=b, head=head, start=at, count=min(KEYS, blocks * BLOCK - at), entry=entry)
                _plan_held(work, mine, chunk, held)
            for n in range(len(mine)):
                tiles.append(mine[n])
    # Each piece of work takes six turns, one stage a turn: what one waits for, the stages of others fill.
    for turn in range(len(work) + 6):
        if turn < len(work):
            _load_keys(work[turn].keys, k, v, k_cache, v_cache, names)
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
    """A tile of query rows, heads [head, head + heads) of tokens [first, first + tokens) of sequence b, head by head.

    Attributes:
        rows: heads * tokens. turned: [d, 2, rows]. limit: fp32 [rows, 1], new tokens that each row sees.
        top, total: fp32 [rows, 1], running maximum and sum. out: fp32 [rows, 256], running output.
    """

    b: int
    rows: int
    head: int
    heads: int
    first: int
    tokens: int
    turned: nl.ndarray
    limit: nl.ndarray
    top: nl.ndarray
    total: nl.ndarray
    out: nl.ndarray


@dataclass
class Keys(nl.NKIObject):
    """A chunk: `count` keys from position `start` on of key head `head` of sequence b.

    Attributes:
        entry: place in the table of its first block; -1: new tokens.
        raw, values: [j, lines, 256], key j + 128 * line. turned: k^T, [d, 2, lines * 128].
    """

    b: int
    head: int
    start: int
    count: int
    entry: int
    loaded: bool = False
    transposed: bool = False
    raw: nl.ndarray = None
    values: nl.ndarray = None
    turned: nl.ndarray = None


@dataclass
class Work(nl.NKIObject):
    """One tile of queries against one chunk of keys.

    Attributes:
        limit: fp32 [rows, 1], positions below it count.
        scores: fp32 [rows, keys], masked. bias: fp32 [rows, 1], minus the new maximum, scaled.
        fade: fp32 [rows, 1], what the old maximum's terms are worth under the new one.
        weights: [rows, keys], e^((s - m) / 16). turned: [j, lines, rows]. here: fp32 [rows, 1], their sum.
    """

    tile: Queries
    keys: Keys
    limit: nl.ndarray
    scores: nl.ndarray = None
    bias: nl.ndarray = None
    fade: nl.ndarray = None
    weights: nl.ndarray = None
    turned: nl.ndarray = None
    here: nl.ndarray = None


def _load_queries(q: nl.ndarray, b: int, begin: int, end: int, eye: nl.ndarray, psum: Bank) -> list:
    tokens, heads, dt, f32 = q.shape[1], q.shape[2], q.dtype, nl.float32
    per_tile = min(tokens, ROWS)
    together = max(1, ROWS // per_tile)
    tiles = []
    for head in range(begin, end, together):
        n = min(together, end - head)
        for first in range(0, tokens, per_tile):
            rows = n * per_tile
            seen = sbuf(f32, (per_tile, 1))
            nisa.iota(dst=seen, pattern=[[0, 1]], offset=first + 1, channel_multiplier=1)
            raw, turned, limit = sbuf(dt, (rows, SIZE)), sbuf(dt, (ROWS, 2, rows)), sbuf(f32, (rows, 1))
            for h in range(n):
                at = h * per_tile
                place = q.ap(pattern=[[heads * SIZE, per_tile], [1, SIZE]],
                             offset=((b * tokens + first) * heads + head + h) * SIZE)  # fmt: skip
                nisa.dma_copy(dst=raw[at : at + per_tile], src=place)
                nisa.dma_copy(dst=limit[at : at + per_tile], src=seen)
            bank = psum.take()[:, 0 : 2 * rows]
            for half in range(2):
                turn_into(bank[:, half * rows : (half + 1) * rows], raw[:, half * ROWS : (half + 1) * ROWS], eye)
            nisa.tensor_copy(dst=turned, src=bank, engine=nisa.engine.vector)
            top, total, out = sbuf(f32, (rows, 1)), sbuf(f32, (rows, 1)), sbuf(f32, (rows, SIZE))
            nisa.memset(dst=top, value=LOWEST, engine=nisa.engine.gpsimd)
            nisa.memset(dst=total, value=0.0, engine=nisa.engine.gpsimd)
            nisa.memset(dst=out, value=0.0, engine=nisa.engine.gpsimd)
            tiles.append(
                Queries(
                    b=b, rows=rows, head=head, heads=n, first=first, tokens=per_tile, turned=turned, limit=limit,
                    top=top, total=total, out=out,
                )
            )  # fmt: skip
    return tiles


def _plan_new(work: list, tiles: list, keys: Keys) -> None:
    """Every tile that sees any of the new tokens of the chunk."""
    for n in range(len(tiles)):
        if keys.start < tiles[n].first + tiles[n].tokens:
            work.append(Work(tile=tiles[n], keys=keys, limit=tiles[n].limit))


def _plan_held(work: list, tiles: list, keys: Keys, held: nl.ndarray) -> None:
    """Every tile sees the chunk's tokens below `held`, [128, 1]."""
    for n in range(len(tiles)):
        work.append(Work(tile=tiles[n], keys=keys, limit=held[0 : tiles[n].rows]))


def _load_keys(
    keys: Keys, k: nl.ndarray, v: nl.ndarray, k_cache: nl.ndarray, v_cache: nl.ndarray, names: nl.ndarray
) -> None:
    """Read a chunk that has not been read; rows past its end become zero."""
    if keys.loaded:
        return
    keys.loaded = True
    lines = (keys.count + ROWS - 1) // ROWS
    keys.raw = sbuf(k.dtype, (ROWS, lines, SIZE))
    keys.values = sbuf(k.dtype, (ROWS, lines, SIZE))
    if keys.count % ROWS != 0:
        nisa.memset(dst=keys.raw[:, lines - 1 : lines], value=0.0, engine=nisa.engine.gpsimd)
        nisa.memset(dst=keys.values[:, lines - 1 : lines], value=0.0, engine=nisa.engine.gpsimd)
    if keys.entry < 0:
        for n in range(lines):
            rows, at = min(ROWS, keys.count - n * ROWS), keys.start + n * ROWS
            row = k.shape[2] * SIZE
            pattern, offset = [[row, rows], [1, SIZE]], (keys.b * k.shape[1] + at) * row + keys.head * SIZE
            nisa.dma_copy(dst=keys.raw[0:rows, n : n + 1], src=k.ap(pattern=pattern, offset=offset))
            nisa.dma_copy(dst=keys.values[0:rows, n : n + 1], src=v.ap(pattern=pattern, offset=offset))
        return
    pattern = [[k_cache.shape[2] * SIZE, BLOCK], [1, SIZE]]
    # The hardware's address generator takes 600 ns a transfer: GpSimd, which has nothing else to do, makes some.
    for n in range(keys.count // BLOCK):
        name, row, offset = names[keys.entry + n], (n % 2) * BLOCK, keys.head * SIZE
        nisa.dma_copy(
            dst=keys.raw[row : row + BLOCK, n // 2 : n // 2 + 1],
            src=k_cache.ap(pattern=pattern, offset=offset, scalar_offset=name, indirect_dim=0),
            dge_mode=nisa.dge_mode.hwdge,
        )
        nisa.dma_copy(
            dst=keys.values[row : row + BLOCK, n // 2 : n // 2 + 1],
            src=v_cache.ap(pattern=pattern, offset=offset, scalar_offset=name, indirect_dim=0),
            dge_mode=nisa.dge_mode.swdge if n % 4 != 0 else nisa.dge_mode.hwdge,
        )


def _turn_keys(keys: Keys, eye: nl.ndarray, psum: Bank) -> None:
    """k^T of a chunk that has not been turned."""
    if keys.transposed:
        return
    keys.transposed = True
    lines, dt = keys.raw.shape[1], keys.raw.dtype
    keys.turned = sbuf(dt, (ROWS, 2, lines * ROWS))
    for half in range(2):
        bank = psum.take()[:, 0 : lines * ROWS]
        for n in range(lines):
            data = keys.raw[:, n : n + 1, half * ROWS : (half + 1) * ROWS].reshape((ROWS, ROWS))
            turn_into(bank[:, n * ROWS : (n + 1) * ROWS], data, eye)
        nisa.tensor_copy(dst=keys.turned[:, half : half + 1], src=bank, engine=nisa.engine.vector)


def _score(work: Work, psum: Bank) -> None:
    """Masked scores, the new maximum, and what the old one's terms are worth."""
    tile, keys, f32, scale = work.tile, work.keys, nl.float32, SIZE**-0.5
    size = keys.turned.shape[2]
    bank, highest, top = psum.take()[0 : tile.rows, 0:size], sbuf(f32, (tile.rows, 1)), sbuf(f32, (tile.rows, 1))
    for half in range(2):
        # [d, i] x [d, j] -> [i, j]
        nisa.nc_matmul(
            dst=bank, stationary=tile.turned[:, half : half + 1], moving=keys.turned[:, half : half + 1],
            accumulate=half > 0,
        )  # fmt: skip
    work.scores = sbuf(f32, (tile.rows, size))
    nisa.range_select(
        dst=work.scores, on_true_tile=bank, comp_op0=nl.less, comp_op1=nl.less, bound0=work.limit, bound1=work.limit,
        reduce_cmd=nisa.reduce_cmd.reset_reduce, reduce_res=highest, reduce_op=nl.maximum, range_start=keys.start,
    )  # fmt: skip
    work.bias = sbuf(f32, (tile.rows, 1))
    work.fade = sbuf(f32, (tile.rows, 1))
    nisa.tensor_tensor(dst=top, data1=tile.top, data2=highest, op=nl.maximum)
    nisa.tensor_scalar(dst=work.bias, data=top, op0=nl.multiply, operand0=-scale, engine=nisa.engine.vector)
    nisa.activation(dst=work.fade, op=nl.exp, data=tile.top, scale=scale, bias=work.bias)
    tile.top = top


def _weigh(work: Work) -> None:
    """p = e^((s - m) / 16) and its sum."""
    rows, size = work.scores.shape
    work.weights = sbuf(work.keys.values.dtype, (rows, size))
    work.here = sbuf(nl.float32, (rows, 1))
    nisa.activation_reduce(
        dst=work.weights, op=nl.exp, data=work.scores, reduce_op=nl.add, reduce_res=work.here, bias=work.bias,
        scale=SIZE**-0.5,
    )  # fmt: skip


def _turn_weights(work: Work, eye: nl.ndarray, psum: Bank) -> None:
    """p^T, [j, lines, i]."""
    rows, size = work.weights.shape
    lines, dt = size // ROWS, work.weights.dtype
    bank = psum.take()[:, 0 : lines * rows]
    work.turned = sbuf(dt, (ROWS, lines, rows))
    for n in range(lines):
        turn_into(bank[:, n * rows : (n + 1) * rows], work.weights[:, n * ROWS : (n + 1) * ROWS], eye)
    nisa.tensor_copy(dst=work.turned, src=bank, engine=nisa.engine.scalar)


def _gather(work: Work, psum: Bank) -> None:
    """l <- fade l + sum(p) and o <- fade o + p v."""
    tile, f32 = work.tile, nl.float32
    product, out = psum.take()[0 : tile.rows, 0:SIZE], sbuf(f32, (tile.rows, SIZE))
    for n in range(work.turned.shape[1]):
        # [j, i] x [j, v] -> [i, v]
        nisa.nc_matmul(
            dst=product, stationary=work.turned[:, n : n + 1], moving=work.keys.values[:, n : n + 1], accumulate=n > 0
        )
    nisa.scalar_tensor_tensor(dst=out, data=tile.out, op0=nl.multiply, operand0=work.fade, op1=nl.add, operand1=product)
    total = sbuf(f32, (tile.rows, 1))
    nisa.scalar_tensor_tensor(
        dst=total, data=tile.total, op0=nl.multiply, operand0=work.fade, op1=nl.add, operand1=work.here
    )
    tile.total = total
    tile.out = out


def _finish(tile: Queries, o: nl.ndarray) -> None:
    """o / l, to HBM."""
    inverse, out = sbuf(nl.float32, (tile.rows, 1)), sbuf(o.dtype, (tile.rows, SIZE))
    nisa.reciprocal(dst=inverse, data=tile.total)
    nisa.tensor_scalar(dst=out, data=tile.out, op0=nl.multiply, operand0=inverse, engine=nisa.engine.vector)
    for h in range(tile.heads):
        at, heads = h * tile.tokens, o.shape[2]
        offset = ((tile.b * o.shape[1] + tile.first) * heads + tile.head + h) * SIZE
        place = o.ap(pattern=[[heads * SIZE, tile.tokens], [1, SIZE]], offset=offset)
        nisa.dma_copy(dst=place, src=out[at : at + tile.tokens])
