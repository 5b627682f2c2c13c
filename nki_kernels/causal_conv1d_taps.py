"""What the kernels of the causal convolution share: channels of a core, taps, and their sums for a few tokens."""

import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import BANK_COLUMNS, TILE, Bank, sbuf, split

TAPS = 4
PAST = TAPS - 1


def own_channels(channels: int) -> tuple:
    """The first channel of this core, and how many it has."""
    cores = nl.num_programs()
    assert channels % (TILE * cores) == 0, f"{channels} channels are not a multiple of {TILE} for each of {cores} cores"
    own = channels // cores
    return (nl.program_id(0) * own if cores > 1 else 0, own)


def load_taps(weight: nl.ndarray, runs: list) -> nl.ndarray:
    """The weight of every block of 128 channels: fp32 [c, blocks, 4].

    runs: (first channel, times, channels from one time to the next, channels) of them, in order.
    """
    blocks, at = 0, 0
    for run in runs:
        blocks = blocks + run[1] * (run[3] // TILE)
    raw, columns = sbuf(weight.dtype, (TILE, blocks, TAPS)), sbuf(nl.float32, (TILE, blocks, TAPS))
    for run in runs:
        first, times, step, n = run[0], run[1], run[2], run[3] // TILE
        nisa.dma_copy(
            dst=raw[:, at : at + times * n].reshape((TILE, times, n, TAPS)),
            src=weight.ap(
                pattern=[[TAPS, TILE], [step * TAPS, times], [TILE * TAPS, n], [1, TAPS]], offset=first * TAPS
            ),
        )
        at = at + times * n
    nisa.tensor_copy(dst=columns, src=raw, engine=nisa.engine.vector)
    return columns


def load_silu() -> None:
    """ScalarE's table of it, while it has nothing to do."""
    warm = sbuf(nl.float32, (TILE, 1))
    nisa.memset(dst=warm, value=0.0, engine=nisa.engine.vector)
    nisa.activation(dst=warm, op=nl.silu, data=warm)


def sum_taps(joined: nl.ndarray, picks: nl.ndarray, taps: nl.ndarray, fresh: int, psum: Bank) -> nl.ndarray:
    """The taps of every new token added up, fp32 [c, blocks, tokens].

    joined: inputs, a row each. picks: zeros and ones, [rows, 4 * tokens], the inputs of a token's taps side by side: so
    taps and their sum are two instructions for a few blocks of channels, and no diagonal of taps is made.
    """
    blocks, taken, vector = taps.shape[1], TAPS * fresh, nisa.engine.vector
    summed = sbuf(nl.float32, (TILE, blocks, fresh))
    for part in split(blocks, BANK_COLUMNS // taken):
        bank, n = psum.take(), part[1] - part[0]
        for c in range(part[0], part[1]):
            at = (c - part[0]) * taken
            # [r, c] x [r, (b, m, d)] -> [c, (b, m, d)]
            nisa.nc_matmul(
                dst=bank[:, at : at + taken], stationary=joined[:, c * TILE : (c + 1) * TILE],
                moving=picks, is_moving_onezero=True, accumulate=False,
            )  # fmt: skip
        single = sbuf(nl.float32, (TILE, n, fresh, TAPS))
        by = taps.ap(pattern=[[blocks * TAPS, TILE], [TAPS, n], [0, fresh], [1, TAPS]], offset=part[0] * TAPS)
        nisa.tensor_tensor(dst=single, data1=bank[:, 0 : n * taken], data2=by, op=nl.multiply, engine=vector)
        nisa.tensor_reduce(dst=summed[:, part[0] : part[1]], op=nl.add, data=single, axis=3)
    return summed


def store_silu(y: nl.ndarray, summed: nl.ndarray, begin: int, first: int, psum: Bank) -> None:
    """SiLU, tokens on partitions again, to y [sequences, tokens, channels] from the token `begin` of all on."""
    own, fresh, channels = summed.shape[1] * TILE, summed.shape[2], y.shape[2]
    out = silu_rows(summed, y.dtype, psum)
    nisa.dma_copy(dst=y.ap(pattern=[[channels, fresh], [1, own]], offset=begin * channels + first), src=out)


def silu_rows(summed: nl.ndarray, dtype: nl.dtype, psum: Bank) -> nl.ndarray:
    """SiLU, tokens on partitions again: [tokens, channels] of fp32 [c, blocks, tokens]."""
    blocks, fresh = summed.shape[1], summed.shape[2]
    out = sbuf(dtype, (fresh, blocks * TILE))
    for part in split(blocks, BANK_COLUMNS // TILE):
        bank = psum.take()[0:fresh, 0 : (part[1] - part[0]) * TILE]
        for c in range(part[0], part[1]):
            at = (c - part[0]) * TILE
            nisa.nc_transpose(dst=bank[:, at : at + TILE], data=summed[:, c : c + 1])
        nisa.activation(dst=out[:, part[0] * TILE : part[1] * TILE], op=nl.silu, data=bank)
    return out
