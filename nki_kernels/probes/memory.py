"""Probes of DMA: addresses known at run time, views, broadcasts, gathers, transposes, and how long transfers take."""

import nki
import nki.isa as nisa
import nki.language as nl

from .parts import ROWS, copies, loaded, me, result, sbuf, stored


@nki.jit
def double(x: nl.ndarray) -> nl.ndarray:
    """x [rows, n] -> [cores, rows, n]: twice x."""
    tile, out = loaded(x), result(x.shape[0], x.shape[1], x.dtype)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=2.0)
    nisa.dma_copy(dst=out[me()], src=tile)
    return out


@nki.jit
def read_by_slices(x: nl.ndarray, index: nl.ndarray) -> nl.ndarray:
    """Rows of x [rows, n] by index, int32 [1, m], each address a slice of one tile -> [cores, m, n]."""
    count, columns = index.shape[1], x.shape[1]
    together, out = loaded(index), result(count, columns, x.dtype)
    for n in range(count):
        row = x.ap(pattern=[[columns, 1], [1, columns]], offset=0, scalar_offset=together[:, n : n + 1], indirect_dim=0)
        held = sbuf(x.dtype, (1, columns))
        nisa.dma_copy(dst=held, src=row)
        nisa.dma_copy(dst=out[me(), n : n + 1], src=held)
    return out


@nki.jit
def read_by_tiles(x: nl.ndarray, index: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """The same with every address in a tile of its own; the reads are repeated."""
    count, columns = index.shape[1], x.shape[1]
    together, addresses, held = loaded(index), [], []
    for n in range(count):
        addresses.append(sbuf(nl.int32, (1, 1)))
        nisa.tensor_copy(dst=addresses[n], src=together[:, n : n + 1])
        held.append(sbuf(x.dtype, (1, columns)))
    for _ in range(repeats):
        for n in range(count):
            row = x.ap(pattern=[[columns, 1], [1, columns]], offset=0, scalar_offset=addresses[n], indirect_dim=0)
            nisa.dma_copy(dst=held[n], src=row)
    return stored(held)


@nki.jit
def copy_within_hbm(x: nl.ndarray, pairs: nl.ndarray) -> nl.ndarray:
    """y = x [rows, m] with y[pairs[1, n]] = x[pairs[0, n]], each in one transfer within HBM -> [cores, rows, m]."""
    count, columns = pairs.shape[1], x.shape[1]
    out = result(x.shape[0], x.shape[1], x.dtype)
    nisa.dma_copy(dst=out[me()], src=x)
    for n in range(count):
        read, write = sbuf(nl.int32, (1, 1)), sbuf(nl.int32, (1, 1))
        nisa.dma_copy(dst=read, src=pairs[0:1, n : n + 1])
        nisa.dma_copy(dst=write, src=pairs[1:2, n : n + 1])
        row = x.ap(pattern=[[columns, 1], [1, columns]], offset=0, scalar_offset=read, indirect_dim=0)
        place = out.ap(
            pattern=[[columns, 1], [1, columns]],
            offset=me() * x.shape[0] * columns,
            scalar_offset=write,
            indirect_dim=1,
        )
        nisa.dma_copy(dst=place, src=row)
    return out


@nki.jit
def fold(x: nl.ndarray) -> nl.ndarray:
    """x [256, n] into 128 partitions of 2n, two rows each, in one transfer -> [cores, 128, 2n]."""
    tile = sbuf(x.dtype, (ROWS, 2 * x.shape[1]))
    out = result(ROWS, 2 * x.shape[1], x.dtype)
    nisa.dma_copy(dst=tile, src=x)
    nisa.dma_copy(dst=out[me()], src=tile)
    return out


@nki.jit
def view_with_offset(x: nl.ndarray) -> nl.ndarray:
    """Columns 3 + 5 ... of x [128, 64] in SBUF: a pattern with an offset on a slice that has one -> [cores, 128, 8]."""
    tile, out = loaded(x), result(ROWS, 8, x.dtype)
    picked = sbuf(x.dtype, (ROWS, 8))
    part = tile[:, 3:64]
    nisa.tensor_copy(dst=picked, src=part.ap(pattern=[[64, ROWS], [1, 8]], offset=5))
    nisa.dma_copy(dst=out[me()], src=picked)
    return out


@nki.jit
def store_through_reshape(x: nl.ndarray) -> nl.ndarray:
    """x [128, n] stored through reshape() of the output, [cores * 128 * n] -> [cores, 128, n]."""
    tile, out = loaded(x), result(x.shape[0], x.shape[1], x.dtype)
    lines = out.reshape((nl.num_programs() * ROWS, x.shape[1]))
    nisa.dma_copy(dst=lines[me() * ROWS : (me() + 1) * ROWS], src=tile)
    return out


@nki.jit
def gather(x: nl.ndarray, index: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """Rows of x [rows, n] by index, int32 [128, 1]; rows past the end stay -1 -> [cores, tiles, 128, n]."""
    columns = x.shape[1]
    where, tiles = loaded(index), []
    for n in range(4):
        tiles.append(sbuf(x.dtype, (ROWS, columns)))
        nisa.memset(dst=tiles[n], value=-1.0)
    for step in range(repeats):
        rows = x.ap(pattern=[[columns, ROWS], [1, columns]], offset=0, vector_offset=where, indirect_dim=0)
        nisa.dma_copy(dst=tiles[step % 4], src=rows, oob_mode=nisa.oob_mode.skip)
    return stored(tiles[0:1])


@nki.jit
def broadcast_rows(x: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """x [1, n] into 128 partitions by a step of 0 in HBM -> [cores, tiles, 128, n]."""
    tiles, columns = [], x.shape[1]
    for _ in range(4):
        tiles.append(sbuf(x.dtype, (ROWS, columns)))
    for step in range(repeats):
        nisa.dma_copy(dst=tiles[step % 4], src=x.ap(pattern=[[0, ROWS], [1, columns]], offset=0))
    return stored(tiles[0:1])


@nki.jit
def loads(x: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """x [128, n] into eight tiles in turn -> [cores, tiles, 128, n]."""
    tiles = copies(x, 8)
    for step in range(repeats):
        nisa.dma_copy(dst=tiles[step % 8], src=x)
    return stored(tiles)


@nki.jit
def software_loads(x: nl.ndarray, pieces: int, repeats: int = 1) -> nl.ndarray:
    """x [128, pieces, 2n], the first n of each, by descriptors that GpSimd makes -> [cores, 1, 128, pieces * n]."""
    tiles, size = [], x.shape[2] // 2
    for _ in range(4):
        tiles.append(sbuf(x.dtype, (ROWS, pieces, size)))
    for step in range(4 + repeats):
        nisa.dma_copy(dst=tiles[step % 4], src=x[:, :, 0:size], dge_mode=nisa.dge_mode.swdge)
    return stored([tiles[0].reshape((ROWS, pieces * size))])


@nki.jit
def pieces_loads(x: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """x [128, pieces, 2n], the first n of each piece -> [cores, 1, 128, pieces * n]."""
    tiles, size = [], x.shape[2] // 2
    for _ in range(8):
        tiles.append(sbuf(x.dtype, (ROWS, x.shape[1], size)))
    for step in range(8 + repeats):
        nisa.dma_copy(dst=tiles[step % 8], src=x[:, :, 0:size])
    return stored([tiles[0].reshape((ROWS, x.shape[1] * size))])


@nki.jit
def there_and_back(x: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """x [128, n] stored and loaded again, each after the other -> [cores, 1, 128, n]."""
    tile = loaded(x)
    kept = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.hbm)
    for _ in range(repeats):
        nisa.dma_copy(dst=kept, src=tile)
        nisa.dma_copy(dst=tile, src=kept)
    return stored([tile])


@nki.jit
def transposed_loads(x: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """x [n, 128] turned on the way, in eight tiles -> [cores, tiles, 128, n]."""
    tiles = []
    for _ in range(8):
        tiles.append(sbuf(x.dtype, (ROWS, x.shape[0])))
    for step in range(8 + repeats):
        nisa.dma_transpose(dst=tiles[step % 8], src=x)
    return stored(tiles[0:1])


@nki.jit
def turned_in_sbuf(x: nl.ndarray, rows: int = 128, repeats: int = 1) -> nl.ndarray:
    """Tiles of `rows` columns of x [128, n], each turned from SBUF to SBUF -> [cores, tiles, rows, n / rows * 128]."""
    held, count, turned = loaded(x), x.shape[1] // rows, []
    for _ in range(4):
        turned.append(sbuf(x.dtype, (rows, 1, count, ROWS)))
    source = held.ap(pattern=[[x.shape[1], ROWS], [1, 1], [rows, count], [1, rows]])
    for step in range(4 + repeats):
        nisa.dma_transpose(dst=turned[step % 4], src=source)
    for n in range(4):
        turned[n] = turned[n].reshape((rows, count * ROWS))
    return stored(turned)


@nki.jit
def turned_lines(x: nl.ndarray) -> nl.ndarray:
    """x [128, lines * 256], a line in two halves, turned from SBUF to SBUF -> [cores, 128, lines * 256]."""
    lines = x.shape[1] // (2 * ROWS)
    held, turned = loaded(x), sbuf(x.dtype, (ROWS, lines, 2, ROWS))
    source = held.ap(pattern=[[x.shape[1], ROWS], [2 * ROWS, lines], [ROWS, 2], [1, ROWS]])
    nisa.dma_transpose(dst=turned, src=source)
    out = result(ROWS, x.shape[1], x.dtype)
    nisa.dma_copy(dst=out[me()], src=turned.reshape((ROWS, x.shape[1])))
    return out


@nki.jit
def turned_there_and_back(x: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """x [128, n] turned in SBUF again and again, an even number of times -> [cores, 1, 128, n]: x."""
    count = x.shape[1] // ROWS
    pattern = [[x.shape[1], ROWS], [1, 1], [ROWS, count], [1, ROWS]]
    tiles = [loaded(x), sbuf(x.dtype, x.shape)]
    for step in range(repeats):
        nisa.dma_transpose(dst=tiles[(step + 1) % 2].ap(pattern=pattern), src=tiles[step % 2].ap(pattern=pattern))
    return stored(tiles[0:1])
