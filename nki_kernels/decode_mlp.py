"""A decode step's feed-forward block on one rank: residual in, norm, SwiGLU, sum over cores and ranks, residual out."""

import nki
import nki.collectives as ncc
import nki.isa as nisa
import nki.language as nl

from .decode_mlp_parts import DOWN_BANKS, feed_forward, pieces_of
from .decode_sums import store_sum
from .delta_rule_tiles import BANK_COLUMNS, TILE, sbuf
from .weight_stream import group_width, normed_lines, open_stream


@nki.jit
def decode_mlp(
    x: nl.ndarray,
    gamma: nl.ndarray,
    gate_up: nl.ndarray,
    down: nl.ndarray,
    gate_up_scale: nl.ndarray = None,
    down_scale: nl.ndarray = None,
    replica_group: ncc.ReplicaGroup = None,
    ranks: int = 1,
    eps: float = 1e-6,
) -> nl.ndarray:
    """x + the MLP of the RMS norm of x, summed over the ranks: rows of one to five tokens of a few sequences.

    Every weight is read once, in runs of kilobytes, while TensorE multiplies what has landed (see `weight_stream`:
    rows are stationary, weights move). Cores divide gate and up by output channel and down by output channel: between
    them they exchange h, a part at a time, behind products that do not need it, and each has half of the sum over
    ranks. The residual goes into that sum, a `ranks`-th of it on every rank, so what comes out of it is the result.

    Dimensions:
        R: rows, at most 64
        H: hidden size, a multiple of 128 times the cores; L = H / 128 lines
        I: intermediate size of this rank and core, a multiple of 128
        C: physical cores, 1 or 2

    Args:
        x (nl.ndarray): [R, H], bfloat16 or float32, the residual
        gamma (nl.ndarray): [128, L], float32, the norm's full factor
        gate_up (nl.ndarray): [C, 128, L * 2 I], bfloat16, or uint8 float8_e4m3 codes (IEEE-like: largest 240)
        down (nl.ndarray): [C, 128, C * I / 128 * H / C], likewise
        gate_up_scale (nl.ndarray): [C, 128, 2 I / 128], float32, with codes only
        down_scale (nl.ndarray): [C, H / C], float32, with codes only
        replica_group (ncc.ReplicaGroup): the ranks that sum; not used by one rank
        ranks (int): how many they are, a power of two
        eps (float): added to the mean of squares

    All weights and scales in the order of `decode_mlp_torch.pack`.

    Returns:
        y (nl.ndarray): [R, H], of x's type

    Pseudocode:
        n = (x * gamma) * rsqrt(mean(x * x) + eps), rounded to bfloat16
        h = silu((n gate) * scale) * ((n up) * scale), rounded to bfloat16
        y = sum over ranks of (h down) * scale + x / ranks, in float32
    """
    rows, hidden = x.shape
    cores = nl.num_programs()
    core = nl.program_id(0) if cores > 1 else 0
    group, lines, own = group_width(rows), hidden // TILE, hidden // cores
    blocks = gate_up.shape[2] // (lines * 2 * TILE)
    assert hidden % (TILE * cores) == 0, f"hidden size {hidden} is not a multiple of {TILE * cores}"
    assert own <= DOWN_BANKS * BANK_COLUMNS * (TILE // group), f"{own} channels a core do not fit: use two cores"
    assert gate_up.shape[0] == cores, f"weights are packed for {gate_up.shape[0]} cores, launched on {cores}"
    assert ranks in (1, 2, 4, 8, 16, 32, 64), f"{ranks} ranks: a power of two, so that a part of the residual is exact"

    stream = open_stream(pieces_of(gate_up, down, lines, blocks, own, cores), gate_up.dtype, core)
    banks = []
    for _ in range(4 + DOWN_BANKS):
        banks.append(nl.ndarray((TILE, BANK_COLUMNS), dtype=nl.float32, buffer=nl.psum))
    factor = sbuf(nl.float32, (TILE, lines))
    nisa.dma_copy(dst=factor, src=gamma)
    normed = normed_lines(x, factor, group, banks[2], eps)
    stream.fetch(2)
    scales = (gate_up_scale, down_scale, blocks, gate_up.dtype == nl.uint8)
    partial = feed_forward(normed, rows, stream, banks, scales, x, own, cores, core, ranks)
    y = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    store_sum(y, partial, core * own, replica_group, ranks)
    return y
