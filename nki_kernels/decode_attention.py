"""A decode step's attention on one rank: residual in, norm, projection, paged attention, gate, output, residual out."""

import nki
import nki.collectives as ncc
import nki.isa as nisa
import nki.language as nl

from .decode_attention_context import attend, gated_lines, load_keys, load_values, merge, open_context
from .decode_attention_heads import (
    Projected,
    Sizes,
    key_rows,
    make_tables,
    open_gates,
    rotate,
    to_send,
    value_rows,
)
from .decode_sums import project, store_sum
from .delta_rule_tiles import BANK_COLUMNS, BANKS, TILE, Bank, make_banks, sbuf
from .paged_attention_chunk import SIZE, turn_keys
from .paged_gather import BLOCK
from .weight_stream import SLOTS, columns_of, cut, group_width, normed_lines, open_stream


@nki.jit
def decode_attention(
    x: nl.ndarray,
    gamma: nl.ndarray,
    into: nl.ndarray,
    out: nl.ndarray,
    q_factor: nl.ndarray,
    k_factor: nl.ndarray,
    cos: nl.ndarray,
    sin: nl.ndarray,
    k_cache: nl.ndarray,
    v_cache: nl.ndarray,
    table: nl.ndarray,
    start: nl.ndarray,
    places: nl.ndarray,
    into_scale: nl.ndarray = None,
    out_scale: nl.ndarray = None,
    replica_group: ncc.ReplicaGroup = None,
    ranks: int = 1,
    eps: float = 1e-6,
    begin: int = 0,
) -> tuple:
    """x + gated attention of the RMS norm of x, summed over the ranks: a few sequences of one to five new tokens.

    Weights are read once as in `decode_mlp`, the output's while attention runs, the first keys and values while the
    input's are multiplied. Cores divide both projections by output channel and the context by place: between them they
    exchange the projection, then their parts of the softmax's sums. New keys and values go into the cache in place.

    Dimensions:
        B: sequences
        T: new tokens of each; R = B * T rows, at most 64
        H: hidden size, a multiple of 128 times the cores; L = H / 128 lines
        Q, K: query and key heads of this rank, of 256 channels, Q a multiple of K; Q / K * T at most 128
        P: blocks of 64 tokens that a row of the table can name: the live context and no more is read
        C: physical cores, 1 or 2
        N: rotated pairs of channels, at most 64

    Args:
        x (nl.ndarray): [R, H], bfloat16 or float32, the residual, a sequence's tokens side by side
        gamma (nl.ndarray): [128, L], float32, the norm's full factor
        into (nl.ndarray): [C, 128, L * 512 (Q + K) / C], bfloat16, or uint8 float8_e4m3 codes (IEEE-like: largest
            240): queries, gates, keys, values, each head by head
        out (nl.ndarray): [C, 128, 2 Q * H / C], likewise
        q_factor (nl.ndarray): [128, 2], float32, the query norm's full factor, channel 128 n + p at [p, n]
        k_factor (nl.ndarray): [128, 2], float32, the key norm's
        cos (nl.ndarray): [R, N], float32 or bfloat16, of the angles of each token's place
        sin (nl.ndarray): [R, N], likewise
        k_cache (nl.ndarray): [blocks * 64, K, 256], float32 or bfloat16, which is also the type of attention's
            operands; finite. Written in place
        v_cache (nl.ndarray): [blocks * 64, K, 256], of the same type; finite. Written in place
        table (nl.ndarray): [B, P], int32, blocks of each sequence in order; unused entries name any block
        start (nl.ndarray): [1, B], int32, tokens of each sequence that the cache holds, at most 64 * P
        places (nl.ndarray): [R, 1], int32, where keys and values of the rows go; past the last: not kept
        into_scale (nl.ndarray): [C, 512 (Q + K) / C], float32, with codes only
        out_scale (nl.ndarray): [C, H / C], float32, with codes only
        replica_group (ncc.ReplicaGroup): the ranks that sum; not used by one rank
        ranks (int): how many they are, a power of two
        eps (float): added to the means of squares
        begin (int): places of the cache before this one hold nothing; at most a block

    Weights, scales and factors in the order of `decode_attention_torch`.

    Returns:
        y (nl.ndarray): [R, H], of x's type
        k_cache (nl.ndarray): the argument
        v_cache (nl.ndarray): the argument

    Notes:
        Channels i and i + N of a head turn together, i < N. Places of the cache are below 2^24.

    Pseudocode:
        n = (x * gamma) * rsqrt(mean(x * x) + eps), rounded to bfloat16
        q, gate, k, v = (n into) * scale, in float32
        q, k = rotated norms of q, k, rounded to the cache's type; v rounded likewise
        a = softmax(q K^T / 16) V, K and V being the cache's first `start` tokens, then the new ones up to the query's
        y = sum over ranks of ((a * sigmoid(gate), rounded to bfloat16) out) * scale + x / ranks, in float32
    """
    rows, hidden = x.shape
    batch, key_heads, dtype = table.shape[0], k_cache.shape[1], k_cache.dtype
    cores = nl.num_programs()
    core = nl.program_id(0) if cores > 1 else 0
    group, lines, own = group_width(rows), hidden // TILE, hidden // cores
    wide, scaled = into.shape[2] // lines, into.dtype == nl.uint8
    heads = wide * cores // (2 * SIZE) - key_heads
    of = Sizes(
        batch=batch, tokens=rows // batch, rows=rows, heads=heads, key_heads=key_heads, share=heads // key_heads
    )  # fmt: skip
    _check(of, into, out, k_cache, wide, own, cores, ranks, begin, group)

    psum, itemsize = make_banks(), 1 if scaled else 2
    columns = max(wide, own)
    taken = (len(columns_of(columns)) * group + TILE - 1) // TILE
    sums, spare = psum.tiles[BANKS - taken : BANKS], Bank(tiles=psum.tiles[0 : BANKS - taken])
    pieces = cut(into, 0, lines, wide, itemsize)
    before = len(pieces)
    pieces.extend(cut(out, 0, 2 * heads, own, itemsize))
    stream = open_stream(pieces, into.dtype, core)
    stream.until = 2 if before > 2 else before
    factor, channel = sbuf(nl.float32, (TILE, lines)), sbuf(nl.float32, (rows, columns))
    nisa.dma_copy(dst=factor, src=gamma)
    normed = normed_lines(x, factor, group, spare.take(), eps)
    stationaries = []
    for line in range(lines):
        stationaries.append(normed[:, line : line + 1])
    sent, ahead = to_send(rows, wide, cores), pieces[0][2] if before > 1 else 0
    mine = sent[0:rows]
    stream.fetch(2)
    if ahead > 0:
        project(stream, sums, stationaries, mine, group, scaled, channel, channel, 0, end=ahead)
    if scaled:
        nisa.dma_copy(dst=channel[:, 0:wide], src=into_scale.ap(pattern=[[0, rows], [1, wide]], offset=core * wide))
    # What attention needs is made behind the first products, of transfers that no more weights are ahead of.
    context = open_context(of, table, start, dtype, begin, core, cores, spare)
    tables = make_tables(of, q_factor, k_factor, cos, sin, spare)
    where = sbuf(nl.int32, (rows, 1))
    nisa.dma_copy(dst=where, src=places, dge_mode=nisa.dge_mode.swdge)
    stream.until = before
    stream.fetch(SLOTS)
    blocks = k_cache.shape[0] // BLOCK
    old_keys = k_cache.reshape((blocks, BLOCK, key_heads, SIZE))
    old_values = v_cache.reshape((blocks, BLOCK, key_heads, SIZE))
    load_keys(context, 0, old_keys)
    load_values(context, 0, old_values)
    project(stream, sums, stationaries, mine, group, scaled, channel, channel, 0, begin=ahead)

    stream.until = len(pieces)
    projected = _exchange(sent, rows, core, cores)
    turn_keys(context.work[0], context.consts[0])
    keys, queries = rotate(of, projected, tables, dtype, eps, psum)
    values = value_rows(of, projected, dtype)
    gates = open_gates(of, projected, psum)
    groups = attend(of, context, keys, queries, values, old_keys, old_values, stream)
    parts, diagonals = merge(groups, context.consts[0].eye32, core, cores)
    mixed = gated_lines(of, parts, diagonals, gates, cores, psum)
    # Both cores have read the cache when they have met.
    _store_new(of, keys, values, where, k_cache, v_cache, context.consts[0].eye, core, cores, psum)
    residual, partial = sbuf(x.dtype, (rows, own)), sbuf(nl.float32, (rows, own))
    nisa.dma_copy(dst=residual, src=x.ap(pattern=[[hidden, rows], [1, own]], offset=core * own))
    if scaled:
        nisa.dma_copy(dst=channel[:, 0:own], src=out_scale.ap(pattern=[[0, rows], [1, own]], offset=core * own))
    project(stream, sums, mixed, partial, group, scaled, channel, residual, ranks)
    y = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    store_sum(y, partial, core * own, replica_group, ranks)
    return y, k_cache, v_cache


def _check(
    of: Sizes, into: nl.ndarray, out: nl.ndarray, k_cache: nl.ndarray, wide: int, own: int, cores: int, ranks: int,
    begin: int, group: int,
) -> None:  # fmt: skip
    """Refuse what the kernel is not for."""
    most = (BANKS - 1) * BANK_COLUMNS * (TILE // group)
    assert into.shape[0] == cores, f"weights are packed for {into.shape[0]} cores, launched on {cores}"
    assert of.rows == of.batch * of.tokens, f"{of.rows} rows do not divide among {of.batch} sequences"
    assert k_cache.shape[2] == SIZE, f"head size is {k_cache.shape[2]}, must be {SIZE}"
    plain = k_cache.dtype == nl.float32 or k_cache.dtype == nl.bfloat16
    assert plain, f"keys and values are {k_cache.dtype}: this kernel takes float32 or bfloat16, paged_attention codes"
    assert of.heads == of.key_heads * of.share, f"{of.heads} query heads do not divide among {of.key_heads} key heads"
    assert of.share * of.tokens <= TILE, f"{of.share} query heads of {of.tokens} tokens a key head, at most {TILE}"
    assert out.shape[2] == 2 * of.heads * own, f"the output's weights are not of {of.heads} heads and {own} channels"
    assert wide <= most, f"{wide} channels a core do not fit: use more ranks"
    assert own <= most, f"{own} channels a core do not fit: use two cores"
    assert 0 <= begin <= BLOCK, f"places begin at {begin}, must be 0 to {BLOCK}"
    assert ranks in (1, 2, 4, 8, 16, 32, 64), f"{ranks} ranks: a power of two, so that a part of the residual is exact"


def _exchange(mine: nl.ndarray, rows: int, core: int, cores: int) -> Projected:
    """Both cores' channels."""
    if cores == 1:
        return Projected(parts=[mine], rows=rows)
    theirs, other = sbuf(nl.float32, mine.shape), 1 - core
    nisa.sendrecv(src=mine, dst=theirs, send_to_rank=other, recv_from_rank=other, pipe_id=0)
    return Projected(parts=[mine, theirs] if core == 0 else [theirs, mine], rows=rows)


def _store_new(
    of: Sizes, keys: nl.ndarray, values: nl.ndarray, where: nl.ndarray, k_cache: nl.ndarray, v_cache: nl.ndarray,
    eye: nl.ndarray, core: int, cores: int, psum: Bank,
) -> None:  # fmt: skip
    """Keys by the first core, values by the last."""
    width = of.key_heads * SIZE
    if core == 0:
        place = k_cache.ap(pattern=[[width, of.rows], [1, width]], vector_offset=where)
        nisa.dma_copy(dst=place, src=key_rows(of, keys, eye, psum), oob_mode=nisa.oob_mode.skip)
    if core == cores - 1:
        place = v_cache.ap(pattern=[[width, of.rows], [1, width]], vector_offset=where)
        nisa.dma_copy(dst=place, src=values, oob_mode=nisa.oob_mode.skip)
