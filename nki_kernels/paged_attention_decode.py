"""Attention of few query rows, which `paged_attention` is for up to 127 new tokens of each sequence.

Keys are the stationary operand, so scores come out with keys on partitions, as the product with the values wants the
weights: only keys are transposed. The maximum, which then lies across partitions, is turned over once a chunk.
"""

import nki.isa as nisa
import nki.language as nl

from .delta_rule_masks import keep_where
from .delta_rule_tiles import BANK_COLUMNS, TILE, Bank, identity, make_banks, on_every_row, sbuf, split, turn_into
from .paged_attention_chunk import (
    NOT_SEEN,
    PART,
    SIZE,
    Chunk,
    Decode,
    Rows,
    find_top,
    multiply_first,
    multiply_rest,
    score,
    weigh,
)
from .paged_gather import BLOCK, find_pages, gather_lines, rows_of_chunk

MOST = 32
"""Blocks of a chunk, 2,048 tokens: long enough to read, short enough that the next chunk's keys hide its maximum."""


def attend_few(
    q: nl.ndarray, k: nl.ndarray, v: nl.ndarray, k_cache: nl.ndarray, v_cache: nl.ndarray, table: nl.ndarray,
    start: nl.ndarray, o: nl.ndarray, first: int, own: int, lowest: int,
) -> None:  # fmt: skip
    """Heads [first, first + own) of `paged_attention` into o; arguments as there, lowest being its `begin`."""
    tokens, share, f32 = q.shape[1], q.shape[2] // k.shape[2], nl.float32
    psum = make_banks()
    pages = find_pages(table, MOST, psum)
    eye32 = identity(f32)
    eye = eye32 if q.dtype == f32 else identity(q.dtype)
    ones, place = sbuf(f32, (TILE, TILE)), sbuf(f32, (TILE, pages.lines))
    nisa.memset(dst=ones, value=1.0, engine=nisa.engine.vector)
    nisa.iota(dst=place, pattern=[[1, pages.lines]], channel_multiplier=pages.lines)
    heads = min(own, max(1, TILE // tokens))
    later = sbuf(f32, (tokens, heads, tokens))
    nisa.memset(dst=later, value=0.0, engine=nisa.engine.gpsimd)
    keep_where(later, [[0, heads], [1, tokens]], -1, 0, NOT_SEEN)
    const = Decode(
        eye=eye, eye32=eye32, ones=ones, held=tokens_held(start, psum), later=later, place=place, pages=pages,
        psum=psum,
    )  # fmt: skip
    work: list = []
    groups: list = []
    for b in range(q.shape[0]):
        for head in range(first // share, (first + own - 1) // share + 1):
            begin, end = max(first, head * share), min(first + own, (head + 1) * share)
            mine = []
            for part in split(end - begin, max(1, TILE // tokens)):
                group = _load_queries(q, b, begin + part[0], part[1] - part[0], const)
                mine.append(group)
                groups.append(group)
            for c in range(pages.chunks):
                work.append(
                    Chunk(
                        b=b, head=head, number=c, rows=rows_of_chunk(pages, c), groups=mine, keys=[], values=[],
                        turned=[], scores=[], weights=[], fades=[],
                        tops=[], products=[],
                    )
                )  # fmt: skip
    # One stage a turn, so that chunks overlap: each engine finds another's work where it would wait.
    for turn in range(len(work) + 3):
        if turn < len(work):
            _load_keys(work[turn], k, k_cache, lowest, const)
        if turn >= 1 and turn - 1 < len(work):
            _load_values(work[turn - 1], v, v_cache, const)
        if turn >= 1 and turn - 1 < len(work):
            score(work[turn - 1], const)
        if turn >= 2 and turn - 2 < len(work):
            find_top(work[turn - 2], const)
        if turn >= 3:
            multiply_first(work[turn - 3], const)
        if turn >= 2 and turn - 2 < len(work):
            weigh(work[turn - 2], const)
        if turn >= 3:
            multiply_rest(work[turn - 3], const)
            if work[turn - 3].number == pages.chunks - 1:
                for n in range(len(work[turn - 3].groups)):
                    _finish(work[turn - 3].groups[n], o)


def tokens_held(start: nl.ndarray, psum: Bank) -> nl.ndarray:
    """int32 [1, B] of HBM as fp32 [128, B]."""
    batch, f32 = start.shape[1], nl.float32
    given, row, held = sbuf(nl.int32, (1, batch)), sbuf(f32, (1, batch)), sbuf(f32, (TILE, batch))
    nisa.dma_copy(dst=given, src=start)
    nisa.tensor_copy(dst=row, src=given, engine=nisa.engine.vector)
    for at in range(0, batch, BANK_COLUMNS):
        end = min(batch, at + BANK_COLUMNS)
        nisa.tensor_copy(dst=held[:, at:end], src=on_every_row(row[:, at:end], psum), engine=nisa.engine.vector)
    return held


def _turn_rows(raw: nl.ndarray, const: Decode) -> nl.ndarray:
    """[n, 256] as [d, 2, n]."""
    n = raw.shape[0]
    bank, turned = const.psum.take()[:, 0 : 2 * n], sbuf(raw.dtype, (TILE, 2, n))
    for half in range(2):
        turn_into(bank[:, half * n : (half + 1) * n], raw[:, half * TILE : (half + 1) * TILE], const.eye)
    nisa.tensor_copy(dst=turned, src=bank, engine=nisa.engine.vector)
    return turned


def _load_queries(q: nl.ndarray, b: int, head: int, heads: int, const: Decode) -> Rows:
    tokens, every = q.shape[1], q.shape[2]
    raw = sbuf(q.dtype, (heads * tokens, SIZE))
    if tokens == 1:
        nisa.dma_copy(dst=raw, src=q.ap(pattern=[[SIZE, heads], [1, SIZE]], offset=(b * every + head) * SIZE))
    else:
        for h in range(heads):
            src = q.ap(pattern=[[every * SIZE, tokens], [1, SIZE]], offset=(b * tokens * every + head + h) * SIZE)
            nisa.dma_copy(dst=raw[h * tokens : (h + 1) * tokens], src=src)
    return Rows(b=b, head=head, heads=heads, rows=heads * tokens, turned=_turn_rows(raw, const))


def _load_keys(chunk: Chunk, k: nl.ndarray, k_cache: nl.ndarray, lowest: int, const: Decode) -> None:
    """Keys, and which of them nobody sees."""
    gather_keys(chunk, k_cache, k.dtype, const)
    if chunk.number == 0:
        chunk.new = _turn_rows(_new_rows(k, chunk.b, chunk.head), const)
    mask_unseen(chunk, lowest, const)


def gather_keys(chunk: Chunk, k_cache: nl.ndarray, dtype: nl.dtype, const: Decode) -> None:
    """Keys of the cache."""
    pages = const.pages
    for at in range(0, pages.lines, PART):
        part = sbuf(dtype, (chunk.rows, min(PART, pages.lines - at), SIZE))
        gather_lines(part, k_cache, pages, chunk.b, chunk.number, chunk.head, at)
        chunk.keys.append(part)


def mask_unseen(chunk: Chunk, lowest: int, const: Decode) -> None:
    """Which keys of the cache nobody sees: those beyond what is held, and those before place `lowest`."""
    pages = const.pages
    unseen, ahead = sbuf(nl.float32, (chunk.rows, pages.lines)), sbuf(nl.float32, (chunk.rows, 1))
    nisa.tensor_scalar(
        dst=ahead, data=const.held[0 : chunk.rows, chunk.b : chunk.b + 1], op0=nl.subtract,
        operand0=float(chunk.number * pages.blocks * BLOCK), engine=nisa.engine.vector,
    )  # fmt: skip
    nisa.tensor_scalar(
        dst=unseen, data=const.place[0 : chunk.rows], op0=nl.greater_equal, operand0=ahead, op1=nl.multiply,
        operand1=NOT_SEEN, engine=nisa.engine.vector,
    )  # fmt: skip
    if lowest > 0 and chunk.number == 0:
        before = sbuf(nl.float32, (chunk.rows, pages.lines))
        nisa.tensor_scalar(
            dst=before, data=const.place[0 : chunk.rows], op0=nl.less, operand0=float(lowest), op1=nl.multiply,
            operand1=NOT_SEEN, engine=nisa.engine.vector,
        )  # fmt: skip
        nisa.tensor_tensor(dst=unseen, data1=unseen, data2=before, op=nl.add, engine=nisa.engine.vector)
    chunk.unseen = unseen


def _load_values(chunk: Chunk, v: nl.ndarray, v_cache: nl.ndarray, const: Decode) -> None:
    """Values, which come after the next chunk's keys: they are needed later."""
    gather_values(chunk, v_cache, v.dtype, const)
    if chunk.number == 0:
        chunk.new_values = _new_rows(v, chunk.b, chunk.head)


def gather_values(chunk: Chunk, v_cache: nl.ndarray, dtype: nl.dtype, const: Decode) -> None:
    """Values of the cache."""
    pages = const.pages
    for at in range(0, pages.lines, PART):
        part = sbuf(dtype, (chunk.rows, min(PART, pages.lines - at), SIZE))
        gather_lines(part, v_cache, pages, chunk.b, chunk.number, chunk.head, at)
        chunk.values.append(part)


def _new_rows(x: nl.ndarray, b: int, head: int) -> nl.ndarray:
    """One head of the new tokens, [tokens, 256]."""
    tokens, row, out = x.shape[1], x.shape[2] * SIZE, sbuf(x.dtype, (x.shape[1], SIZE))
    nisa.dma_copy(dst=out, src=x.ap(pattern=[[row, tokens], [1, SIZE]], offset=b * tokens * row + head * SIZE))
    return out


def _finish(group: Rows, o: nl.ndarray) -> None:
    """o / l, to HBM."""
    tokens, every = o.shape[1], o.shape[2]
    inverse, out = sbuf(nl.float32, (group.rows, 1)), sbuf(o.dtype, (group.rows, SIZE))
    nisa.reciprocal(dst=inverse, data=group.total)
    nisa.tensor_scalar(dst=out, data=group.out, op0=nl.multiply, operand0=inverse, engine=nisa.engine.vector)
    if tokens == 1:
        place = o.ap(pattern=[[SIZE, group.heads], [1, SIZE]], offset=(group.b * every + group.head) * SIZE)
        nisa.dma_copy(dst=place, src=out)
        return
    for h in range(group.heads):
        offset = (group.b * tokens * every + group.head + h) * SIZE
        place = o.ap(pattern=[[every * SIZE, tokens], [1, SIZE]], offset=offset)
        nisa.dma_copy(dst=place, src=out[h * tokens : (h + 1) * tokens])
