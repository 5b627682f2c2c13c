"""Projections of a decode step's mixers on one rank: norm and input, gated norm and output with its sum over ranks."""

import nki
import nki.collectives as ncc
import nki.isa as nisa
import nki.language as nl

from .decode_sums import leave, project, store, store_sum
from .delta_rule_tiles import BANK_COLUMNS, TILE, sbuf, square_sums, to_power
from .weight_stream import cut, group_width, normed_lines, open_stream

BANKS = 6


@nki.jit
def norm_projection(
    x: nl.ndarray,
    gamma: nl.ndarray,
    weight: nl.ndarray,
    scale: nl.ndarray = None,
    eps: float = 1e-6,
    few: nl.ndarray = None,
    has_few: bool = False,
) -> nl.ndarray:
    """The RMS norm of x times a weight whose output channels are divided among ranks and cores: nothing is summed.

    Rows are stationary and weights move, read once (see `weight_stream`).

    Dimensions:
        R: rows, at most 64
        H: hidden size, a multiple of 128; L = H / 128 lines
        N: output channels of this rank
        M: a few more of them, whose weights are bfloat16 whatever the type of the others; at most 512 C
        C: physical cores, 1 or 2, of which each has N / C and M / C channels

    Args:
        x (nl.ndarray): [R, H], bfloat16 or float32
        gamma (nl.ndarray): [128, L], float32, the norm's full factor
        weight (nl.ndarray): [C, 128, L * N / C], bfloat16, or uint8 float8_e4m3 codes (IEEE-like: largest 240)
        scale (nl.ndarray): [C, N / C], float32, with codes only
        eps (float): added to the mean of squares
        few (nl.ndarray): [C, 128, L * M / C], bfloat16
        has_few (bool): it is given: a kernel cannot ask a tensor

    Returns:
        y (nl.ndarray): [R, N], of x's type; with `few` also z (nl.ndarray): [R, M], of x's type

    Pseudocode:
        y = ((x * gamma) * rsqrt(mean(x * x) + eps), rounded to bfloat16) weight * scale, in float32; z likewise of few
    """
    rows, hidden = x.shape
    cores = nl.num_programs()
    core = nl.program_id(0) if cores > 1 else 0
    group, count = group_width(rows), hidden // TILE
    own, scaled = weight.shape[2] // count, weight.dtype == nl.uint8
    assert weight.shape[0] == cores, f"weights are packed for {weight.shape[0]} cores, launched on {cores}"
    assert own <= BANKS * BANK_COLUMNS * (TILE // group), f"{own} channels a core do not fit: use more launches"
    stream = open_stream(cut(weight, 0, count, own, 1 if scaled else 2), weight.dtype, core)
    banks = []
    for _ in range(1 + BANKS):
        banks.append(nl.ndarray((TILE, BANK_COLUMNS), dtype=nl.float32, buffer=nl.psum))
    factor, channel = sbuf(nl.float32, (TILE, count)), sbuf(nl.float32, (rows, own))
    nisa.dma_copy(dst=factor, src=gamma)
    normed = normed_lines(x, factor, group, banks[BANKS], eps)
    beside: tuple = ()
    if has_few:
        beside = (few_weights(few, count, core), banks[BANKS])
    stream.fetch(2)
    if scaled:
        nisa.dma_copy(dst=channel, src=scale.ap(pattern=[[0, rows], [1, own]], offset=core * own))
    lines = []
    for line in range(count):
        lines.append(normed[:, line : line + 1])
    out = sbuf(nl.float32, (rows, own))
    project(stream, tuple(banks[0:BANKS]), lines, out, group, scaled, channel, channel, 0, beside)
    y = nl.ndarray((rows, own * cores), dtype=x.dtype, buffer=nl.shared_hbm)
    store(y, out, core * own)
    if not has_few:
        return y
    more = beside[0].shape[2]
    rest = sbuf(nl.float32, (rows, more))
    leave((banks[BANKS],), 0, (0, more), rest, group, False, channel, channel, 0)
    z = nl.ndarray((rows, more * cores), dtype=x.dtype, buffer=nl.shared_hbm)
    store(z, rest, core * more)
    return y, z


def few_weights(few: nl.ndarray, lines: int, core: int) -> nl.ndarray:
    """This core's part of the weights of a few channels: [128, lines, channels]."""
    row = few.shape[2]
    own = row // lines
    assert own <= BANK_COLUMNS, f"{own} channels more a core, at most {BANK_COLUMNS}"
    weights = sbuf(nl.bfloat16, (TILE, row))
    nisa.dma_copy(dst=weights, src=few.ap(pattern=[[row, TILE], [1, row]], offset=core * TILE * row))
    return weights.reshape((TILE, lines, own))


@nki.jit
def gated_norm_projection(
    x: nl.ndarray,
    mixed: nl.ndarray,
    gate: nl.ndarray,
    factor: nl.ndarray,
    weight: nl.ndarray,
    scale: nl.ndarray = None,
    replica_group: ncc.ReplicaGroup = None,
    ranks: int = 1,
    eps: float = 1e-6,
) -> nl.ndarray:
    """x + the gated norm of the delta rule's output, a head at a time, times a weight whose input channels are divided
    among ranks: the sum over them is taken here.

    Both cores norm every head, which takes less than to exchange them, and have half of the output channels each.

    Dimensions:
        R: rows, at most 64; R * V at most 512
        H: hidden size, a multiple of the cores
        V: value heads of this rank, of 128 channels
        C: physical cores, 1 or 2

    Args:
        x (nl.ndarray): [R, H], bfloat16 or float32, the residual
        mixed (nl.ndarray): [R, V, 128], float32
        gate (nl.ndarray): [R, V, 128], float32 or bfloat16
        factor (nl.ndarray): [1, 128], float32, the norm's full factor
        weight (nl.ndarray): [C, 128, V * H / C], bfloat16, or uint8 float8_e4m3 codes (IEEE-like: largest 240)
        scale (nl.ndarray): [C, H / C], float32, with codes only
        replica_group (ncc.ReplicaGroup): the ranks that sum; not used by one rank
        ranks (int): how many they are, a power of two
        eps (float): added to the mean of squares

    Returns:
        y (nl.ndarray): [R, H], of x's type

    Pseudocode:
        n = mixed * rsqrt(mean(mixed * mixed) + eps) * (factor * silu(gate)), rounded to bfloat16
        y = sum over ranks of (n weight) * scale + x / ranks, in float32
    """
    rows, hidden = x.shape
    heads, cores = mixed.shape[1], nl.num_programs()
    core = nl.program_id(0) if cores > 1 else 0
    group, own, scaled = group_width(rows), hidden // cores, weight.dtype == nl.uint8
    assert weight.shape[0] == cores, f"weights are packed for {weight.shape[0]} cores, launched on {cores}"
    assert rows * heads <= BANK_COLUMNS, f"{rows} rows of {heads} heads, at most {BANK_COLUMNS} together"
    assert own <= BANKS * BANK_COLUMNS * (TILE // group), f"{own} channels a core do not fit: use two cores"
    assert ranks in (1, 2, 4, 8, 16, 32, 64), f"{ranks} ranks: a power of two, so that a part of the residual is exact"
    stream = open_stream(cut(weight, 0, heads, own, 1 if scaled else 2), weight.dtype, core)
    banks = []
    for _ in range(1 + BANKS):
        banks.append(nl.ndarray((TILE, BANK_COLUMNS), dtype=nl.float32, buffer=nl.psum))
    lines = _gated_lines(mixed, gate, factor, banks[BANKS], eps, stream)
    residual, channel = sbuf(x.dtype, (rows, own)), sbuf(nl.float32, (rows, own))
    nisa.dma_copy(dst=residual, src=x.ap(pattern=[[hidden, rows], [1, own]], offset=core * own))
    if scaled:
        nisa.dma_copy(dst=channel, src=scale.ap(pattern=[[0, rows], [1, own]], offset=core * own))
    partial = sbuf(nl.float32, (rows, own))
    project(stream, tuple(banks[0:BANKS]), lines, partial, group, scaled, channel, residual, ranks)
    y = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    store_sum(y, partial, core * own, replica_group, ranks)
    return y


def _gated_lines(
    mixed: nl.ndarray, gate: nl.ndarray, factor: nl.ndarray, bank: nl.ndarray, eps: float, stream: nl.NKIObject
) -> list:
    """The gated norm as a stationary a head, bfloat16 [128, rows]: rows and heads on partitions, then turned."""
    rows, heads, size = mixed.shape
    total, f32, vector = rows * heads, nl.float32, nisa.engine.vector
    every = sbuf(f32, (TILE, size))
    loaded = []
    for start in range(0, total, TILE):
        count = min(TILE, total - start)
        data, opened = sbuf(f32, (count, 1, size)), sbuf(gate.dtype, (count, size))
        nisa.dma_copy(dst=data, src=mixed.ap(pattern=[[size, count], [size, 1], [1, size]], offset=start * size))
        nisa.dma_copy(dst=opened, src=gate.ap(pattern=[[size, count], [1, size]], offset=start * size))
        loaded.append((start, count, data, opened))
    nisa.dma_copy(dst=every, src=factor.ap(pattern=[[0, TILE], [1, size]]))
    stream.fetch(2)
    for tile in loaded:
        start, count, data, opened = tile
        sums, root = sbuf(f32, (count, 1, 1)), sbuf(f32, (count, 1))
        square_sums(sums, data)
        nisa.tensor_scalar(dst=root, data=sums, op0=nl.multiply, operand0=1.0 / size, engine=vector)
        to_power(root, root, eps, -0.5)
        wide, normed = sbuf(f32, (count, size)), sbuf(f32, (count, size))
        nisa.activation(dst=wide, op=nl.silu, data=opened)
        nisa.tensor_tensor(dst=wide, data1=wide, data2=every[0:count], op=nl.multiply, engine=vector)
        nisa.scalar_tensor_tensor(dst=normed, data=data, op0=nl.multiply, operand0=root, op1=nl.multiply, operand1=wide)
        # [row and head, channel] -> [channel, row and head]
        nisa.nc_transpose(dst=bank[:, start : start + count], data=normed)
    turned, out = sbuf(nl.bfloat16, (TILE, heads * rows)), []
    by_row = turned.ap(pattern=[[heads * rows, TILE], [1, rows], [rows, heads]])
    nisa.tensor_copy(dst=by_row, src=bank[:, 0:total], engine=vector)
    for head in range(heads):
        out.append(turned[:, head * rows : (head + 1) * rows])
    return out
