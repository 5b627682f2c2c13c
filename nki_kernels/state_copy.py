"""Copies of states by index: a lane to a checkpoint slot, or back."""

import nki
import nki.isa as nisa
import nki.language as nl

LINES = 128
"""Pieces a state is moved in, for the DMA engines to share."""


@nki.jit
def state_copy(dst: nl.ndarray, src: nl.ndarray, pairs: nl.ndarray) -> nl.ndarray:
    """dst[to] = src[from] for n pairs of rows: n states move, whatever the number of lanes and slots.

    Dimensions:
        R: elements of a row, a multiple of 128; with two cores each moves half of every row

    Args:
        dst (nl.ndarray): [rows, ...], written in place
        src (nl.ndarray): [rows, ...], the same row shape and type
        pairs (nl.ndarray): [2, n], int32, rows of src, then rows of dst, no row of dst twice; a pair with either past
            the last row is skipped, which is how unused pairs are given

    Returns:
        dst (nl.ndarray): the argument

    Pseudocode:
        for j in range(n): dst[pairs[1, j]] = src[pairs[0, j]]
    """
    n, size = pairs.shape[1], 1
    for d in range(1, len(src.shape)):
        assert src.shape[d] == dst.shape[d], f"rows of src are {src.shape[1:]}, rows of dst are {dst.shape[1:]}"
        size = size * src.shape[d]
    cores = nl.num_programs()
    assert size % (LINES * cores) == 0, f"{size} elements a row are not a multiple of {LINES * cores}"
    own = size // cores
    offset = nl.program_id(0) * own if cores > 1 else 0
    pattern = [[own // LINES, LINES], [1, own // LINES]]

    index = nl.ndarray((1, 2 * n), dtype=nl.int32, buffer=nl.sbuf)
    nisa.dma_copy(dst=index, src=pairs.reshape((1, 2 * n)))
    for j in range(n):
        row = src.ap(pattern=pattern, offset=offset, scalar_offset=index[0:1, j : j + 1], indirect_dim=0)
        to = dst.ap(pattern=pattern, offset=offset, scalar_offset=index[0:1, n + j : n + j + 1], indirect_dim=0)
        nisa.dma_copy(dst=to, src=row, oob_mode=nisa.oob_mode.skip)
    return dst
