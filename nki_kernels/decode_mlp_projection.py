"""A feed-forward block and the next layer's input projection in one program, the residual between them in SBUF."""

import nki
import nki.collectives as ncc
import nki.isa as nisa
import nki.language as nl

from .decode_mlp_parts import DOWN_BANKS, feed_forward, pieces_of
from .decode_projection import few_weights
from .decode_sums import leave, project, store
from .delta_rule_tiles import BANK_COLUMNS, TILE, Bank, identity, sbuf, split, turn_into
from .weight_stream import cut, group_width, norm_lines, normed_lines, open_stream


@nki.jit
def decode_mlp_projection(
    x: nl.ndarray,
    gamma: nl.ndarray,
    gate_up: nl.ndarray,
    down: nl.ndarray,
    next_gamma: nl.ndarray,
    into: nl.ndarray,
    gate_up_scale: nl.ndarray = None,
    down_scale: nl.ndarray = None,
    into_scale: nl.ndarray = None,
    replica_group: ncc.ReplicaGroup = None,
    ranks: int = 1,
    eps: float = 1e-6,
    few: nl.ndarray = None,
    has_few: bool = False,
) -> tuple:
    """`decode_mlp`, then `norm_projection` of what comes out of it: weights of the second come while ranks sum.

    What goes into the second norm is rounded to x's type, as between two programs. The sum has rows on partitions, of
    which each core has half of the channels: it turns them, and they exchange them.

    Dimensions:
        R, H, I, C: as of `decode_mlp`; H a multiple of 128 times the cores
        L = H / 128 lines
        N, M: output channels of this rank's next projection, and a few more as of `norm_projection`

    Args:
        x, gamma, gate_up, down, gate_up_scale, down_scale, replica_group, ranks, eps: as of `decode_mlp`
        next_gamma (nl.ndarray): [128, L], float32, the next norm's full factor, channel 128 n + p at [p, n]
        into (nl.ndarray): [C, 128, L * N / C], of the other weights' type, in the order of `pack_blocks`
        into_scale (nl.ndarray): [C, N / C], float32, with codes only
        few (nl.ndarray): [C, 128, L * M / C], bfloat16, in the same order
        has_few (bool): it is given

    Returns:
        y (nl.ndarray): [R, H], of x's type, the residual
        z (nl.ndarray): [R, N], of x's type, the projection of its norm; with `few` also its [R, M]
    """
    rows, hidden = x.shape
    cores = nl.num_programs()
    core = nl.program_id(0) if cores > 1 else 0
    group, lines, own = group_width(rows), hidden // TILE, hidden // cores
    blocks, wide = gate_up.shape[2] // (lines * 2 * TILE), into.shape[2] // lines
    scaled = gate_up.dtype == nl.uint8
    most = DOWN_BANKS * BANK_COLUMNS * (TILE // group)
    assert hidden % (TILE * cores) == 0, f"hidden size {hidden} is not a multiple of {TILE * cores}"
    assert own <= most, f"{own} channels a core do not fit: use two cores"
    assert wide <= most, f"{wide} channels a core of the next projection do not fit, at most {most}"
    assert gate_up.shape[0] == cores, f"weights are packed for {gate_up.shape[0]} cores, launched on {cores}"
    assert into.dtype == gate_up.dtype, "the next projection's weights are of another type than the block's"
    assert ranks in (1, 2, 4, 8, 16, 32, 64), f"{ranks} ranks: a power of two, so that a part of the residual is exact"

    pieces = pieces_of(gate_up, down, lines, blocks, own, cores)
    pieces.extend(cut(into, 0, lines, wide, 1 if scaled else 2))
    stream = open_stream(pieces, gate_up.dtype, core)
    banks = []
    for _ in range(4 + DOWN_BANKS):
        banks.append(nl.ndarray((TILE, BANK_COLUMNS), dtype=nl.float32, buffer=nl.psum))
    factor, next_factor = sbuf(nl.float32, (TILE, lines)), sbuf(nl.float32, (TILE, lines))
    nisa.dma_copy(dst=factor, src=gamma)
    normed = normed_lines(x, factor, group, banks[2], eps)
    stream.fetch(2)
    nisa.dma_copy(dst=next_factor, src=next_gamma)
    eye = identity(x.dtype)
    beside: tuple = ()
    if has_few:
        beside = (few_weights(few, lines, core), banks[3])
    channel = sbuf(nl.float32, (rows, wide))
    scales = (gate_up_scale, down_scale, blocks, scaled)
    partial = feed_forward(normed, rows, stream, banks, scales, x, own, cores, core, ranks)
    if scaled:
        nisa.dma_copy(dst=channel, src=into_scale.ap(pattern=[[0, rows], [1, wide]], offset=core * wide))

    total = partial
    if ranks > 1:
        # The next weights come meanwhile: as many as there is room for.
        total = sbuf(nl.float32, (rows, own))
        ncc.all_reduce(srcs=[partial], dsts=[total], replica_group=replica_group, op=nl.add)
    rounded = total
    if x.dtype != nl.float32:
        rounded = sbuf(x.dtype, (rows, own))
        nisa.tensor_copy(dst=rounded, src=total, engine=nisa.engine.vector)
    y = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=y.ap(pattern=[[hidden, rows], [1, own]], offset=core * own), src=rounded)
    columns = _turn(rounded, eye, core, cores, Bank(tiles=(banks[0], banks[1])))
    again = norm_lines(columns, next_factor, group, banks[2], eps)
    stationaries = []
    for line in range(lines):
        stationaries.append(again[:, line : line + 1])
    out = sbuf(nl.float32, (rows, wide))
    project(stream, tuple(banks[4:]), stationaries, out, group, scaled, channel, channel, 0, beside)
    z = nl.ndarray((rows, wide * cores), dtype=x.dtype, buffer=nl.shared_hbm)
    store(z, out, core * wide)
    if not has_few:
        return y, z
    more = beside[0].shape[2]
    rest = sbuf(nl.float32, (rows, more))
    leave((banks[3],), 0, (0, more), rest, group, False, channel, channel, 0)
    z_few = nl.ndarray((rows, more * cores), dtype=x.dtype, buffer=nl.shared_hbm)
    store(z_few, rest, core * more)
    return y, z, z_few


def _turn(data: nl.ndarray, eye: nl.ndarray, core: int, cores: int, psum: Bank) -> nl.ndarray:
    """Channels of rows [rows, own] of each core as fp32 [128, rows, lines]: channel 128 n + p on partition p of n."""
    rows, count = data.shape[0], data.shape[1] // TILE
    mine = sbuf(nl.float32, (TILE, rows * count))
    for part in split(count, BANK_COLUMNS // rows):
        bank, n = psum.take()[:, 0 : (part[1] - part[0]) * rows], part[1] - part[0]
        for block in range(part[0], part[1]):
            at = (block - part[0]) * rows
            turn_into(bank[:, at : at + rows], data[:, block * TILE : (block + 1) * TILE], eye)
        # [d, (n, r)] -> [d, (r, n)]
        place = mine.ap(pattern=[[rows * count, TILE], [1, n], [count, rows]], offset=part[0])
        nisa.tensor_copy(dst=place, src=bank, engine=nisa.engine.vector)
    if cores == 1:
        return mine.reshape((TILE, rows, count))
    theirs, other = sbuf(nl.float32, (TILE, rows * count)), 1 - core
    nisa.sendrecv(src=mine, dst=theirs, send_to_rank=other, recv_from_rank=other, pipe_id=1)
    out = sbuf(nl.float32, (TILE, rows, cores * count))
    nisa.tensor_copy(
        dst=out[:, :, core * count : (core + 1) * count], src=mine.reshape((TILE, rows, count)),
        engine=nisa.engine.scalar,
    )  # fmt: skip
    nisa.tensor_copy(
        dst=out[:, :, other * count : (other + 1) * count], src=theirs.reshape((TILE, rows, count)),
        engine=nisa.engine.vector,
    )  # fmt: skip
    return out
