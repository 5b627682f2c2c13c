"""Attention of a decode step over a paged context of which each core reads a part, and the sum of the parts.

Every core has all query heads, so keys and values are read, and keys turned, once by a rank and not once by a core.
Functions are called inside kernels and compile into them.
"""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .decode_attention_heads import HALVES, Sizes, to_send
from .delta_rule_masks import keep_where
from .delta_rule_tiles import BANK_COLUMNS, TILE, Bank, identity, sbuf
from .paged_attention_chunk import (
    NOT_SEEN,
    SCALE,
    SIZE,
    Chunk,
    Decode,
    Rows,
    find_top,
    multiply_first,
    multiply_rest,
    score,
    turn_keys,
    weigh,
)
from .paged_attention_decode import MOST, gather_keys, gather_values, mask_unseen, tokens_held
from .paged_gather import BLOCK, add_addresses, make_pages, rows_of_chunk
from .weight_stream import SLOTS, WeightStream

PARTIAL = SIZE + 2
"""Columns of a part of a sum: values, then their maximum, then the sum of weights."""


@dataclass
class Context(nl.NKIObject):
    """What the cores read.

    Attributes:
        consts: of each sequence, apart from each other in what its new tokens see.
        lowest: places of this core's part before this one are not its own, or hold nothing.
        work: chunks, by sequence, key head and place.
    """

    consts: list
    lowest: int
    work: list


def open_context(
    of: Sizes, table: nl.ndarray, start: nl.ndarray, dtype: nl.dtype, begin: int, core: int, cores: int, psum: Bank
) -> Context:
    """Addresses and masks of this core's part: a half of the table's blocks, the middle one masked by the second core
    if their count is odd. The first core has the new tokens, each of which sees its own sequence's up to itself.
    """
    f32, named = nl.float32, table.shape[1]
    own = (named + cores - 1) // cores
    first = core * (named - own)
    pages = make_pages(table[:, first : first + own], MOST)
    add_addresses(pages, table, psum, first)
    held = tokens_held(start, psum)
    if first > 0:
        nisa.tensor_scalar(
            dst=held, data=held, op0=nl.subtract, operand0=float(first * BLOCK), engine=nisa.engine.vector
        )
    ones, place = sbuf(f32, (TILE, TILE)), sbuf(f32, (TILE, pages.lines))
    nisa.memset(dst=ones, value=1.0, engine=nisa.engine.gpsimd)
    nisa.iota(dst=place, pattern=[[1, pages.lines]], channel_multiplier=pages.lines)
    eye32 = identity(f32)
    eye = eye32 if dtype == f32 else identity(dtype)
    consts = []
    for b in range(of.batch):
        later = sbuf(f32, (of.rows, of.share, of.tokens))
        nisa.memset(dst=later, value=0.0 if core == 0 else NOT_SEEN, engine=nisa.engine.gpsimd)
        if core == 0:
            keep_where(later, [[0, of.share], [0, of.tokens]], 1, -b * of.tokens, NOT_SEEN)
            keep_where(later, [[0, of.share], [1, of.tokens]], -1, b * of.tokens, NOT_SEEN)
        consts.append(
            Decode(eye=eye, eye32=eye32, ones=ones, held=held, later=later, place=place, pages=pages, psum=psum)
        )
    work: list = []
    for b in range(of.batch):
        for head in range(of.key_heads):
            for c in range(pages.chunks):
                work.append(
                    Chunk(
                        b=b, head=head, number=c, rows=rows_of_chunk(pages, c), groups=[], keys=[], values=[],
                        turned=[], scores=[], weights=[], fades=[], tops=[], products=[],
                    )
                )  # fmt: skip
    lowest = begin if core == 0 else (cores * own - named) * BLOCK
    return Context(consts=consts, lowest=lowest, work=work)


def load_keys(context: Context, at: int, k_cache: nl.ndarray) -> None:
    """Of chunk `at`, if there is one."""
    if at < len(context.work):
        chunk = context.work[at]
        gather_keys(chunk, k_cache, k_cache.dtype, context.consts[chunk.b])
        mask_unseen(chunk, context.lowest, context.consts[chunk.b])


def load_values(context: Context, at: int, v_cache: nl.ndarray) -> None:
    """Of chunk `at`, if there is one."""
    if at < len(context.work):
        chunk = context.work[at]
        gather_values(chunk, v_cache, v_cache.dtype, context.consts[chunk.b])


def attend(
    of: Sizes, context: Context, keys: nl.ndarray, queries: nl.ndarray, values: nl.ndarray, k_cache: nl.ndarray,
    v_cache: nl.ndarray, stream: WeightStream,
) -> list:  # fmt: skip
    """The running sums of every sequence and key head, `Rows` of (head, token), in that order.

    Args:
        keys, queries: as `rotate` gives them.
        values: [rows, key heads * 256] of the new tokens.
        stream: Weights that are to come behind the keys and values.
    """
    groups, work = [], context.work
    for n in range(of.batch * of.key_heads):
        b, head = n // of.key_heads, n % of.key_heads
        count, at = of.share * of.tokens, (b * of.heads + head * of.share) * of.tokens
        groups.append(Rows(b=b, head=head, heads=of.share, rows=count, turned=queries[:, :, at : at + count]))
    chunks = len(work) // len(groups)
    for n in range(len(work)):
        chunk = work[n]
        chunk.groups = [groups[n // chunks]]
        if chunk.number == 0:
            chunk.new = keys[:, :, chunk.head : chunk.head + 1].reshape((TILE, HALVES, of.rows))
            chunk.new_values = values[:, chunk.head * SIZE : (chunk.head + 1) * SIZE]
    # One stage a turn, as in `attend_few`; the first keys and values are on their way.
    for turn in range(len(work) + 2):
        load_keys(context, turn + 1, k_cache)
        if turn > 0:
            load_values(context, turn, v_cache)
        if turn + 1 == len(work):
            stream.fetch(SLOTS)
        if turn < len(work):
            score(work[turn], context.consts[work[turn].b])
        if turn >= 1 and turn - 1 < len(work):
            find_top(work[turn - 1], context.consts[work[turn - 1].b])
        if turn + 1 < len(work):
            turn_keys(work[turn + 1], context.consts[work[turn + 1].b])
        if turn >= 2:
            multiply_first(work[turn - 2], context.consts[work[turn - 2].b])
        if turn >= 1 and turn - 1 < len(work):
            weigh(work[turn - 1], context.consts[work[turn - 1].b])
        if turn >= 2:
            multiply_rest(work[turn - 2], context.consts[work[turn - 2].b])
    return groups


def merge(groups: list, eye: nl.ndarray, core: int, cores: int) -> tuple:
    """Sums of the cores, fp32 [rows, groups, 258] each, and what each is to be multiplied with: fp32
    [rows, cores, groups, rows], factors on the diagonal."""
    count, rows, f32, vector = len(groups), groups[0].rows, nl.float32, nisa.engine.vector
    sent = to_send(rows, count * PARTIAL, cores)
    mine = sent.reshape((sent.shape[0], count, PARTIAL))[0:rows]
    for n in range(count):
        nisa.tensor_copy(dst=mine[:, n : n + 1, 0:SIZE], src=groups[n].out, engine=vector)
        nisa.tensor_copy(dst=mine[:, n : n + 1, SIZE : SIZE + 1], src=groups[n].top, engine=nisa.engine.gpsimd)
        nisa.tensor_copy(dst=mine[:, n : n + 1, SIZE + 1 : PARTIAL], src=groups[n].total, engine=nisa.engine.gpsimd)
    parts, factors = [mine], sbuf(f32, (rows, cores, count))
    if cores == 1:
        nisa.reciprocal(dst=factors, data=mine[:, :, SIZE + 1 : PARTIAL])
    else:
        got = sbuf(f32, sent.shape)
        nisa.sendrecv(src=sent, dst=got, send_to_rank=1 - core, recv_from_rank=1 - core, pipe_id=1)
        theirs = got.reshape((got.shape[0], count, PARTIAL))[0:rows]
        parts = [mine, theirs] if core == 0 else [theirs, mine]
        top, less = sbuf(f32, (rows, count)), sbuf(f32, (rows, cores, count))
        tops, totals = [], []
        for part in parts:
            tops.append(part[:, :, SIZE : SIZE + 1])
            totals.append(part[:, :, SIZE + 1 : PARTIAL])
        nisa.tensor_tensor(dst=top, data1=tops[0], data2=tops[1], op=nl.maximum, engine=vector)
        for n in range(cores):
            nisa.tensor_tensor(dst=less[:, n : n + 1], data1=tops[n], data2=top, op=nl.subtract, engine=vector)
        fades, weighed = sbuf(f32, (rows, cores, count)), sbuf(f32, (rows, cores, count))
        nisa.activation(dst=fades, op=nl.exp, data=less, scale=SCALE)
        for n in range(cores):
            nisa.tensor_tensor(
                dst=weighed[:, n : n + 1], data1=fades[:, n : n + 1], data2=totals[n], op=nl.multiply, engine=vector
            )
        total, inverse = sbuf(f32, (rows, count)), sbuf(f32, (rows, count))
        nisa.tensor_tensor(dst=total, data1=weighed[:, 0:1], data2=weighed[:, 1:2], op=nl.add, engine=vector)
        nisa.reciprocal(dst=inverse, data=total)
        every = inverse.ap(pattern=[[count, rows], [0, cores], [1, count]])
        nisa.tensor_tensor(dst=factors, data1=fades, data2=every, op=nl.multiply, engine=vector)
    width = cores * count
    diagonals = sbuf(f32, (rows, cores, count, rows))
    nisa.tensor_tensor(
        dst=diagonals, data1=eye.ap(pattern=[[TILE, rows], [0, width], [1, rows]]),
        data2=factors.ap(pattern=[[width, rows], [1, width], [0, rows]]), op=nl.multiply, engine=vector,
    )  # fmt: skip
    return parts, diagonals


def gated_lines(of: Sizes, parts: list, diagonals: nl.ndarray, gates: nl.ndarray, cores: int, psum: Bank) -> list:
    """Attention times its gates as stationaries, bfloat16 [128, rows] of each half of each head.

    A product with a diagonal adds up the cores' parts, divides by the sum of weights and turns them, all at once.
    """
    count, rows = parts[0].shape[1], parts[0].shape[0]
    out = sbuf(nl.bfloat16, (TILE, of.heads * HALVES * of.rows))
    together = BANK_COLUMNS // (HALVES * rows)
    for start in range(0, count, together):
        bank = psum.take()
        for n in range(start, min(count, start + together)):
            for half in range(HALVES):
                at = ((n - start) * HALVES + half) * rows
                for core in range(cores):
                    # [(h, t), d] x [(h, t), (h, t)] -> [d, (h, t)]
                    nisa.nc_matmul(
                        dst=bank[:, at : at + rows],
                        stationary=parts[core][:, n : n + 1, half * TILE : (half + 1) * TILE],
                        moving=diagonals[:, core : core + 1, n : n + 1], accumulate=core > 0,
                    )  # fmt: skip
            b, first = n // of.key_heads, n % of.key_heads * of.share
            place = out.ap(
                pattern=[[of.heads * HALVES * of.rows, TILE], [of.rows, HALVES], [HALVES * of.rows, of.share],
                         [1, of.tokens]],
                offset=first * HALVES * of.rows + b * of.tokens,
            )  # fmt: skip
            gate = gates.ap(
                pattern=[[HALVES * of.heads * of.rows, TILE], [of.heads * of.rows, HALVES], [of.rows, of.share],
                         [1, of.tokens]],
                offset=first * of.rows + b * of.tokens,
            )  # fmt: skip
            begin = (n - start) * HALVES * rows
            data = bank[:, begin : begin + HALVES * rows]
            nisa.tensor_tensor(dst=place, data1=data, data2=gate, op=nl.multiply, engine=nisa.engine.vector)
    lines = []
    for line in range(of.heads * HALVES):
        lines.append(out[:, line * of.rows : (line + 1) * of.rows])
    return lines
