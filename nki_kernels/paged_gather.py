"""Reading a paged cache: one gather brings a piece of a block to each of up to 128 partitions.

An address costs GpSimd as much as 128 do, so a chunk of blocks is cut into as many pieces as there are partitions.
"""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .delta_rule_masks import keep_where
from .delta_rule_tiles import BANK_COLUMNS, TILE, Bank, sbuf

BLOCK = 64
"""Tokens of a block of the cache."""


@dataclass
class Pages(nl.NKIObject):
    """Where the chunks of every sequence's table lie.

    Attributes:
        blocks: blocks of the cache that a chunk covers; the last chunk of a table may cover fewer.
        pieces: pieces of a block. lines: tokens of a piece.
        chunks: chunks of a sequence. ends: blocks of its last chunk.
        index: int32 [blocks * pieces, 1] each, pieces of the cache; chunk c of sequence b is at b * chunks + c.
    """

    blocks: int
    pieces: int
    lines: int
    chunks: int
    ends: int
    index: list


def rows_of_chunk(pages: Pages, chunk: int) -> int:
    """Partitions that a chunk fills: partition p holds its tokens [p * lines, (p + 1) * lines)."""
    return (pages.ends if chunk == pages.chunks - 1 else pages.blocks) * pages.pieces


def make_pages(table: nl.ndarray, most: int) -> Pages:
    """The chunks of `table`, int32 [B, P], of at most `most` blocks, a power of two up to 64; no addresses yet."""
    named = table.shape[1]
    blocks = 1
    while blocks < most and blocks < named:
        blocks = 2 * blocks
    pieces = min(BLOCK, TILE // blocks)
    chunks = (named + blocks - 1) // blocks
    ends = named - (chunks - 1) * blocks
    return Pages(blocks=blocks, pieces=pieces, lines=BLOCK // pieces, chunks=chunks, ends=ends, index=[])


def find_pages(table: nl.ndarray, most: int, psum: Bank) -> Pages:
    """The chunks of `table` with their addresses."""
    pages = make_pages(table, most)
    add_addresses(pages, table, psum)
    return pages


def add_addresses(pages: Pages, table: nl.ndarray, psum: Bank, begin: int = 0) -> None:
    """Addresses of all chunks, the first of which begins at entry `begin` of each sequence's row of the table.

    Piece p of a chunk is piece p % pieces of its block p // pieces: a product with ones where j = p // pieces spreads
    the entries over the partitions, exactly, since no other term of the sum is there and addresses are below 2^24.
    """
    batch, named, f32 = table.shape[0], table.shape[1], nl.float32
    blocks, pieces, chunks, ends = pages.blocks, pages.pieces, pages.chunks, pages.ends
    rows, count = blocks * pieces, batch * chunks
    raw = sbuf(nl.int32, (blocks, batch, chunks))
    if ends < blocks:
        nisa.memset(dst=raw, value=0, engine=nisa.engine.vector)
    whole = chunks if ends == blocks else chunks - 1
    if whole > 0:
        entries = table.ap(pattern=[[1, blocks], [named, batch], [blocks, whole]], offset=begin)
        nisa.dma_copy(dst=raw[:, :, 0:whole], src=entries)
    if ends < blocks:
        entries = table.ap(pattern=[[1, ends], [named, batch], [1, 1]], offset=begin + whole * blocks)
        nisa.dma_copy(dst=raw[0:ends, :, whole:chunks], src=entries)
    spread, first, place = sbuf(f32, (blocks, rows)), sbuf(f32, (blocks, 1)), sbuf(f32, (rows, 1))
    nisa.iota(dst=first, pattern=[[0, 1]], channel_multiplier=pieces)
    nisa.memset(dst=spread, value=1.0, engine=nisa.engine.gpsimd)
    keep_where(spread, [[1, rows]], -pieces, 0, 0.0)
    keep_where(spread, [[-1, rows]], pieces, pieces - 1, 0.0)
    nisa.iota(dst=place, pattern=[[0, 1]], channel_multiplier=1)
    # pieces * (entry - j), to which p is added: p - pieces * j is the piece's number in its block.
    wide = sbuf(f32, (blocks, count))
    nisa.tensor_scalar(
        dst=wide, data=raw, op0=nl.multiply, operand0=float(pieces), op1=nl.subtract, operand1=first,
        engine=nisa.engine.vector,
    )  # fmt: skip
    for start in range(0, count, BANK_COLUMNS):
        n = min(BANK_COLUMNS, count - start)
        bank = psum.take()[0:rows, 0:n]
        nisa.nc_matmul(
            dst=bank, stationary=spread, moving=wide[:, start : start + n], is_stationary_onezero=True,
            accumulate=False,
        )  # fmt: skip
        for at in range(n):
            address = sbuf(nl.int32, (rows, 1))
            nisa.tensor_scalar(
                dst=address, data=bank[:, at : at + 1], op0=nl.add, operand0=place, engine=nisa.engine.vector
            )
            pages.index.append(address)


def numbers_of(cache: nl.ndarray) -> object:
    """What the elements of a cache are read as: FP8 is this device's own E4M3, whatever type its bytes came as."""
    if cache.dtype == nl.uint8 or cache.dtype == nl.float8_e4m3fn:
        return nl.float8_e4m3
    return cache.dtype


def gather_lines(dst: nl.ndarray, cache: nl.ndarray, pages: Pages, b: int, chunk: int, head: int, first: int) -> None:
    """Lines [first, first + n) of a chunk of one head of `cache` [blocks, 64, heads, D] into dst [rows, n, D].

    What was chosen is cast to dst's type on its way.
    """
    rows, lines, size = dst.shape
    heads = cache.shape[2]
    pieces = cache.reshape((cache.shape[0] * pages.pieces, pages.lines * heads * size))
    src = pieces.ap(
        pattern=[[pages.lines * heads * size, rows], [heads * size, lines], [1, size]],
        offset=(first * heads + head) * size, vector_offset=pages.index[b * pages.chunks + chunk][0:rows],
        dtype=numbers_of(cache),
    )  # fmt: skip
    nisa.dma_copy(dst=dst, src=src)
