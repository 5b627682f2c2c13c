"""Copies of states by index: a lane to a checkpoint slot, or back."""

import nki
import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import TILE, index_tiles, sbuf


@nki.jit
def state_copy(dst: nl.ndarray, src: nl.ndarray, pairs: nl.ndarray) -> nl.ndarray:
    """dst[to] = src[from] for n pairs of rows: n states move, whatever the number of lanes and slots.

    Dimensions:
        R: elements of a row, a multiple of 128; with two cores each moves half of every row

    Args:
        dst (nl.ndarray): [rows, ...], written in place
        src (nl.ndarray): [rows, ...], the same row shape and type
        pairs (nl.ndarray): [2, n], int32, rows of src, then rows of dst, no row of dst twice. A row of dst past the
            last one is not written, which is how unused pairs are given; the row of src must exist all the same

    Returns:
        dst (nl.ndarray): the argument

    Notes:
        A row goes through SBUF: a transfer has one address that is known at run time only, not two.

    Pseudocode:
        for j in range(n): dst[pairs[1, j]] = src[pairs[0, j]]
    """
    n, size = pairs.shape[1], 1
    for d in range(1, len(src.shape)):
        assert src.shape[d] == dst.shape[d], f"rows of src are {src.shape[1:]}, rows of dst are {dst.shape[1:]}"
        size = size * src.shape[d]
    cores = nl.num_programs()
    assert size % (TILE * cores) == 0, f"{size} elements a row are not a multiple of {TILE * cores}"
    own = size // cores
    offset = nl.program_id(0) * own if cores > 1 else 0
    pattern = [[own // TILE, TILE], [1, own // TILE]]

    rows = index_tiles(pairs[0:1], n, nisa.engine.vector)
    places = index_tiles(pairs[1:2], n, nisa.engine.gpsimd)
    for j in range(n):
        held = sbuf(src.dtype, (TILE, own // TILE))
        row = src.ap(pattern=pattern, offset=offset, scalar_offset=rows[j], indirect_dim=0)
        place = dst.ap(pattern=pattern, offset=offset, scalar_offset=places[j], indirect_dim=0)
        nisa.dma_copy(dst=held, src=row)
        nisa.dma_copy(dst=place, src=held, oob_mode=nisa.oob_mode.skip)
    return dst
