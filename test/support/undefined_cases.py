"""Instructions on tiles with undefined elements, which hold a filling."""

from collections.abc import Callable

import nki.isa as nisa
import nki.language as nl
import numpy as np

F32, BF16, I32, U32, U16, U8 = nl.float32, nl.bfloat16, nl.int32, nl.uint32, nl.uint16, nl.uint8
P, N = 32, 32
FILLS = (0.0, 1.0, -3.0, 7.0, 100.0)


def tile(fill: float, holes: np.ndarray, dtype=F32, seed=0, buffer=nl.sbuf, low=1, high=6):
    """A [rows, columns] tile of small numbers whose elements in ``holes`` are undefined and happen to hold ``fill``."""
    t = nl.ndarray(holes.shape, dtype=dtype, buffer=buffer)
    values = np.random.default_rng(seed).integers(low, high, holes.shape).astype(np.float32)
    t.array[...] = np.where(holes, max(fill, 0) if dtype in (U8, U16, U32) else fill, values).astype(t.array.dtype)
    t.set_defined(~holes)
    return t


def out(rows=P, columns=N, dtype=F32, buffer=nl.sbuf):
    return nl.ndarray((rows, columns), dtype=dtype, buffer=buffer)


def some(seed, rows=P, columns=N, share=0.2):
    return np.random.default_rng(seed).random((rows, columns)) < share


NONE, COLUMN = np.zeros((P, N), dtype=bool), some(5, P, 1, 0.3)


def copied(f, engine=nisa.engine.unknown):
    d = out()
    nisa.tensor_copy(d, tile(f, some(1)), engine=engine)
    return d


def added(f):
    d = out()
    nisa.tensor_tensor(d, tile(f, some(1)), tile(f, some(2), seed=1), nl.add)
    return d


def scaled(f):
    d = out()
    nisa.tensor_scalar(d, tile(f, some(1)), nl.multiply, tile(f, COLUMN), op1=nl.add, operand1=tile(f, some(6, P, 1)))
    return d


def fused(f):
    d = out()
    nisa.scalar_tensor_tensor(d, tile(f, some(1)), nl.add, tile(f, COLUMN), nl.add, tile(f, some(2)))
    return d


def scanned(f):
    d = out()
    first = tile(f, some(6, P, 1))
    nisa.tensor_tensor_scan(d, tile(f, some(1, share=0.02)), tile(f, some(2, share=0.02)), first, nl.add, nl.add)
    return d


def activated(f):
    d = out()
    nisa.activation(d, nl.copy, tile(f, some(1)), scale=tile(f, COLUMN), bias=tile(f, some(6, P, 1)))
    return d


def selected(f):
    d, keep = out(), tile(f, some(3, share=0.5))
    nisa.tensor_copy(d, keep)
    where = tile(f, NONE, dtype=U8, low=0, high=2)
    nisa.tensor_copy_predicated(d, tile(f, some(1)), where)
    return d


def selected_by_undefined(f):
    d = tile(f, NONE, low=50, high=60)
    nisa.tensor_copy_predicated(d, tile(f, NONE), tile(f, some(1), dtype=U8, low=0, high=2))
    return d


def triangle(f):
    d = out()
    nisa.affine_select(d, [[-1, N]], 1, tile(f, some(1)), -1.0, cmp_op=nl.greater_equal)
    return d


def ranged(f):
    d = out()
    low, high = tile(f, NONE[:, :1], low=4, high=5), tile(f, some(6, P, 1), low=20, high=21)
    nisa.range_select(d, tile(f, some(1)), nl.greater_equal, nl.less, low, high)
    return d


def reduced(f):
    d = out(P, 4)
    nisa.tensor_reduce(d, nl.add, tile(f, some(1, share=0.05)).reshape((P, 4, 8)), axis=2)
    return d


def summed(f):
    d, total = out(), out(P, 1)
    nisa.activation_reduce(d, nl.copy, tile(f, some(1, share=0.02)), nl.add, total)
    return total


def summed_over_two(f):
    total = out(P, 1)
    for seed, command in ((1, nisa.reduce_cmd.reset_reduce), (2, nisa.reduce_cmd.reduce)):
        data = tile(f, some(seed, share=0.01))
        nisa.activation(out(), nl.copy, data, reduce_op=nl.add, reduce_res=total, reduce_cmd=command)
    return total


def scalar_reduced(f):
    total = out(P, 1)
    nisa.tensor_scalar_reduce(out(), tile(f, some(1, share=0.02)), nl.add, 1.0, nl.add, total)
    return total


def cumulated(f):
    d = out()
    nisa.tensor_scalar_cumulative(d, tile(f, some(1, share=0.02)), nl.add, nl.add, 1.0)
    return d


def folded(f):
    d = out(1, N)
    nisa.tensor_partition_reduce(d, nl.add, tile(f, some(1, share=0.02)))
    return d


def turned(f, engine=nisa.engine.tensor):
    d = out(N, P, buffer=nl.psum if engine is nisa.engine.tensor else nl.sbuf)
    nisa.nc_transpose(d, tile(f, some(1)), engine=engine)
    return d


def turned_by_matmul(f):
    d, eye = out(N, P, buffer=nl.psum), tile(f, NONE)
    eye.array[...] = np.eye(P, dtype=np.float32)
    nisa.nc_matmul(d, tile(f, some(1)), eye, is_transpose=True)
    return d


def multiplied(f):
    d = out(N, N, buffer=nl.psum)
    nisa.nc_matmul(d, tile(f, some(1, share=0.01)), tile(f, some(2, share=0.01), seed=1))
    return d


def accumulated(f):
    d = out(N, N, buffer=nl.psum)
    nisa.nc_matmul(d, tile(f, some(1, share=0.01)), tile(f, NONE), accumulate=False)
    nisa.nc_matmul(d, tile(f, NONE), tile(f, some(2, share=0.01), seed=1), accumulate=True)
    return d


def shuffled(f):
    d = out()
    nisa.nc_stream_shuffle(d, tile(f, some(1)), [*range(31, -1, -1)])
    return d


def shuffled_in_place(f):
    d = tile(f, some(1))
    nisa.nc_stream_shuffle(d, d, [1, 0, *[255] * 30])
    return d


def gathered(f):
    d, index = out(), tile(f, NONE, dtype=U32, low=0, high=N)
    nisa.nc_n_gather(d, tile(f, some(1)), index)
    return d


def stored(f):
    scratch = nl.ndarray((P, N), dtype=F32, buffer=nl.hbm)
    d = out()
    nisa.dma_copy(scratch, tile(f, some(1)))
    nisa.dma_copy(d, scratch)
    return d


def dma_gathered(f):
    d, table = out(), nl.ndarray((4, N), dtype=F32, buffer=nl.hbm)
    nisa.dma_copy(table, tile(f, some(1, 4)))
    index = nl.ndarray((P, 1), dtype=I32)
    nisa.iota(index, [[0, 1]], channel_multiplier=1)
    nisa.tensor_scalar(index, index, nl.bitwise_and, 3)
    nisa.dma_copy(d, table.ap([[N, P], [1, N]], vector_offset=index))
    return d


def dma_scattered(f):
    table, index, d = nl.ndarray((2 * P, N), dtype=F32, buffer=nl.hbm), nl.ndarray((P, 1), dtype=I32), out(2 * P)
    nisa.dma_copy(table, tile(f, some(2, 2 * P), seed=1))
    nisa.iota(index, [[0, 1]], channel_multiplier=2)
    nisa.dma_copy(table.ap([[N, P], [1, N]], vector_offset=index), tile(f, some(1)))
    nisa.dma_copy(d, table)
    return d


def dma_turned(f):
    d = out(N, P)
    nisa.dma_transpose(d, tile(f, some(1)))
    return d


def dma_added(f):
    d = out()
    nisa.dma_compute(d, (tile(f, some(1)), tile(f, some(2), seed=1)), nl.add)
    return d


EXACT: list[Callable] = [
    copied, added, scaled, fused, scanned, activated, selected, triangle, reduced, summed, summed_over_two,
    scalar_reduced, cumulated, folded, turned, turned_by_matmul, multiplied, accumulated, shuffled, shuffled_in_place,
    gathered, stored, dma_gathered, dma_scattered, dma_turned, dma_added, selected_by_undefined,
    lambda f: copied(f, nisa.engine.scalar), lambda f: turned(f, nisa.engine.vector),
]  # fmt: skip
# What these say of an element may be more than must be: any of a partition's elements may decide.
CAUTIOUS: list[Callable] = []


def _largest(f):
    d = out(P, 8)
    nisa.max8(d, tile(f, some(1, share=0.02)))
    return d


def _statistics(f):
    d = out(P, 6)
    nisa.bn_stats(d, tile(f, some(1, share=0.02)))
    return d


def _found(f):
    d = out(P, 8, dtype=U32)
    nisa.nc_find_index8(d, tile(f, some(1, share=0.02)), tile(f, NONE[:, :8]))
    return d


def _replaced(f):
    d = out()
    nisa.nc_match_replace8(d, tile(f, some(1, share=0.02)), tile(f, NONE[:, :8]), -9.0)
    return d


def _bounds(f):
    d = out(P, 2 * N)
    nisa.sequence_bounds(d, tile(f, some(1, share=0.02)))
    return d


CAUTIOUS += [ranged, _largest, _statistics, _found, _replaced, _bounds]
