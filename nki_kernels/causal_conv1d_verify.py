"""Depthwise causal convolution with SiLU for a certain token and drafts behind it, a row of a batch each.

What a sequence's inputs are depends on how many of its pending drafts were right. So the product that turns them to
channels on partitions, with the identity elsewhere, is one with a table of zeros and ones here, and picks them.
"""

import nki
import nki.isa as nisa
import nki.language as nl

from .causal_conv1d_taps import PAST, TAPS, load_silu, load_taps, own_channels, store_silu, sum_taps
from .delta_rule_tiles import BANK_COLUMNS, TILE, index_tiles, make_banks, sbuf, split


@nki.jit
def causal_conv1d_verify(
    x: nl.ndarray,
    lanes: nl.ndarray,
    pending: nl.ndarray,
    weight: nl.ndarray,
    relations: nl.ndarray,
    held: nl.ndarray,
    places: nl.ndarray,
) -> tuple:
    """The convolution over a certain token and drafts of every sequence, on top of drafts that were accepted.

    A lane's window has no draft in it. A draft leaves its input, with which it can be taken in later.

    Dimensions:
        B: sequences
        M: tokens of each, the first of them certain
        N: places of drafts for each, M - 1 at least; B (3 + N + M) is at most 128
        K: checkpoints, 3 (B + K) at most 128
        C: channels, a multiple of 128; with two cores each takes half

    Args:
        x (nl.ndarray): [B, M, C], float32 or bfloat16; finite
        lanes (nl.ndarray): [entries, 3, C], of x's type, windows; written in place
        pending (nl.ndarray): [lanes, N, C], of x's type, inputs of drafts; the first is zero. Written in place
        weight (nl.ndarray): [C, 4], of x's type
        relations (nl.ndarray): [B (3 + N + M), 4 B M + 3 (B + K)], of x's type, what `causal_conv1d_relations` gives
        held (nl.ndarray): [B (3 + N), 1], int32: the rows of the sequences' windows, by entry * 3 + row, then their
            drafts', by lane * N + place; 0, a draft of zeros, for one that was wrong
        places (nl.ndarray): [1, 2 B + K], int32: entries for the windows after the first new tokens, past the last: not
            kept; entries for the checkpoints, likewise; lanes whose first M - 1 drafts become those of the sequences,
            past the last: not kept. What is written is named once

    Returns:
        y (nl.ndarray): [B, M, C], of x's type
        lanes (nl.ndarray): the argument
        pending (nl.ndarray): the argument

    Notes:
        The four inputs of a token's taps are picked side by side, so that taps and their sum are two instructions for
        all tokens and a few blocks of channels, and no diagonal of them is made. Products with zeros and ones change
        no bit.

    Pseudocode:
        joined[b] = lanes' rows, pending rows that were right, x[b]
        y[b, m] = silu(sum_d weight[:, d] joined[b, accepted[b] + m + d])
        lanes[places] = joined[b, accepted[b] + 1 : accepted[b] + 4], and the checkpoints' windows
        pending[places, : M - 1] = x[b, 1:]
    """
    batch, tokens, channels = x.shape
    drafts, dt, kept = pending.shape[1], x.dtype, places.shape[1] - batch
    fresh, rows = batch * tokens, relations.shape[0]
    first, own = own_channels(channels)
    taken = TAPS * fresh
    assert tokens <= drafts + 1, f"{tokens - 1} drafts, there are {drafts} places for them"
    assert rows == batch * (PAST + drafts + tokens), f"relations have {rows} rows"
    assert relations.shape[1] == taken + PAST * kept, f"relations have {relations.shape[1]} columns"
    assert rows <= TILE, f"{batch} sequences of {tokens} tokens and {drafts} drafts are over {TILE} rows"
    assert PAST * kept <= TILE, f"{kept} windows to leave, at most {TILE // PAST}"
    y = nl.ndarray((batch, tokens, channels), dtype=dt, buffer=nl.shared_hbm)

    blocks, pool = own // TILE, nisa.dge_mode.swdge
    load_silu()
    joined, table = sbuf(dt, (rows, own)), sbuf(dt, relations.shape)
    old, drafted = _rows(held[0 : batch * PAST]), _rows(held[batch * PAST : rows - fresh])
    new = joined[rows - fresh : rows]
    nisa.dma_copy(dst=new, src=x.ap(pattern=[[channels, fresh], [1, own]], offset=first), dge_mode=pool)
    taps = load_taps(weight, [(first, 1, 0, own)])
    _gather(joined[0 : batch * PAST], lanes, old, first)
    _gather(joined[batch * PAST : rows - fresh], pending, drafted, first)
    nisa.dma_copy(dst=table, src=relations)
    where = index_tiles(places, kept + batch, nisa.engine.gpsimd)
    if tokens > 1:
        for b in range(batch):
            dst = pending.ap(
                pattern=[[channels, tokens - 1], [1, own]], offset=first, scalar_offset=where[kept + b], indirect_dim=0
            )  # fmt: skip
            at = rows - fresh + b * tokens
            nisa.dma_copy(dst=dst, src=joined[at + 1 : at + tokens], oob_mode=nisa.oob_mode.skip)

    psum = make_banks()
    summed, left = sum_taps(joined, table[:, 0:taken], taps, fresh, psum), sbuf(dt, (PAST * kept, own))
    for part in split(blocks, BANK_COLUMNS // TILE):
        # [r, w] x [r, c] -> [w, c]
        bank, begin, end = psum.take(), part[0] * TILE, part[1] * TILE
        nisa.nc_matmul(
            dst=bank[0 : PAST * kept, 0 : end - begin], stationary=table[:, taken:], moving=joined[:, begin:end],
            is_stationary_onezero=True, accumulate=False,
        )  # fmt: skip
        nisa.tensor_copy(
            dst=left[:, begin:end], src=bank[0 : PAST * kept, 0 : end - begin],
            engine=nisa.engine.vector if end == own else nisa.engine.scalar,
        )  # fmt: skip
    for n in range(kept):
        dst = lanes.ap(pattern=[[channels, PAST], [1, own]], offset=first, scalar_offset=where[n], indirect_dim=0)
        nisa.dma_copy(
            dst=dst, src=left[n * PAST : (n + 1) * PAST], oob_mode=nisa.oob_mode.skip,
            dge_mode=pool if n % 2 == 1 else nisa.dge_mode.unknown,
        )  # fmt: skip
    store_silu(y, summed, 0, first, psum)
    return y, lanes, pending


def _rows(held: nl.ndarray) -> nl.ndarray:
    """Row numbers of HBM, int32 [n, 1], in a tile of their own."""
    rows = sbuf(nl.int32, held.shape)
    nisa.dma_copy(dst=rows, src=held)
    return rows


def _gather(dst: nl.ndarray, bank: nl.ndarray, rows: nl.ndarray, first: int) -> None:
    """Rows of [entries, n, channels] by number, channels from the first on."""
    (entries, each, channels), (count, own) = bank.shape, dst.shape
    flat = bank.reshape((entries * each, channels))
    nisa.dma_copy(dst=dst, src=flat.ap(pattern=[[channels, count], [1, own]], offset=first, vector_offset=rows))
