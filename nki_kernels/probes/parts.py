"""What the probes' kernels share. Functions are called inside kernels and compile into them.

Every output has a leading dimension of one entry a physical core, of which each core writes its own: the two cores of a
logical one run the same program, and neither touches what the other wrote.
"""

import nki.isa as nisa
import nki.language as nl

ROWS = 128


def me() -> int:
    """This core's entry of an output."""
    return nl.program_id(0) if nl.num_programs() > 1 else 0


def result(rows: int, columns: int, dtype: nl.dtype) -> nl.ndarray:
    """An output [cores, rows, columns]."""
    return nl.ndarray((nl.num_programs(), rows, columns), dtype=dtype, buffer=nl.shared_hbm)


def sbuf(dtype: nl.dtype, shape: tuple) -> nl.ndarray:
    """A tensor in SBUF."""
    return nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf)


def psum(dtype: nl.dtype, shape: tuple) -> nl.ndarray:
    """A tensor in PSUM."""
    return nl.ndarray(shape, dtype=dtype, buffer=nl.psum)


def loaded(x: nl.ndarray) -> nl.ndarray:
    """A tensor of HBM, [partitions, ...], in SBUF."""
    tile = sbuf(x.dtype, x.shape)
    nisa.dma_copy(dst=tile, src=x)
    return tile


def copies(x: nl.ndarray, count: int) -> list:
    """The same in `count` tiles."""
    tiles = []
    for _ in range(count):
        tiles.append(loaded(x))
    return tiles


def stored(tiles: list) -> nl.ndarray:
    """Tiles of one shape [rows, columns] as an output, [cores, tiles, rows, columns]."""
    rows, columns = tiles[0].shape
    out = nl.ndarray((nl.num_programs(), len(tiles), rows, columns), dtype=tiles[0].dtype, buffer=nl.shared_hbm)
    for n in range(len(tiles)):
        nisa.dma_copy(dst=out[me(), n], src=tiles[n])
    return out


def evicted(bank: nl.ndarray) -> nl.ndarray:
    """A PSUM tile in SBUF."""
    tile = sbuf(bank.dtype, bank.shape)
    nisa.tensor_copy(dst=tile, src=bank)
    return tile
