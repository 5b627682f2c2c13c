"""Undefined elements travel, and are an error where an address, a branch or an output reads them.

What an instruction passes on is checked against the arithmetic itself: with other values in the undefined places, only
elements that are marked undefined may come out differently, and of a marked one some filling must change the value.
"""

from collections.abc import Callable

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest

from nki_kernels.interpreter import UndefinedReadError

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


def results(act):
    """For each filling: (values, where they are defined)."""
    seen = []

    def kernel(x):
        for fill in FILLS:
            made = act(fill)
            mask = made.defined_mask()
            seen.append((np.array(made.array).astype(np.float64), np.ones(made.shape, bool) if mask is None else mask))
        return x

    nki.jit(kernel)(np.zeros((4, 8), dtype=np.float32))
    return seen


@pytest.mark.parametrize("act", EXACT + CAUTIOUS, ids=lambda a: a.__name__)
def test_what_may_come_out_differently_is_undefined(act):
    seen = results(act)
    values, mask = np.stack([v for v, _ in seen]), seen[0][1]
    assert all((m == mask).all() for _, m in seen)
    assert not mask.all()
    assert mask.any()
    varies = (values != values[:1]).any(axis=0)
    assert not (varies & mask).any()
    if act in EXACT:
        np.testing.assert_array_equal(varies, ~mask)


def half(x=None):
    t = nl.ndarray((4, 8), dtype=F32)
    nisa.memset(t[:, 0:4], 0)
    return t


def refused(body, match, x=None):
    with pytest.raises(UndefinedReadError, match=match):
        nki.jit(body)(np.zeros((4, 8), dtype=np.float32) if x is None else x)


def test_an_output_names_where_its_undefined_elements_came_from():
    def kernel(x):
        y = nl.ndarray((4, 8), dtype=F32, buffer=nl.shared_hbm)
        a, b = nl.ndarray((4, 8), dtype=F32), nl.ndarray((4, 8), dtype=F32)
        nisa.activation(a, nl.exp, half())
        nisa.tensor_scalar(b, a, nl.add, 1.0)
        nisa.dma_copy(y, b)
        return y

    refused(
        kernel,
        r"return: operand 'shared_hbm.*holds 16 undefined elements .*the first, at \[0, 4\], came from activation: "
        r"operand 'data' reads 16 undefined elements of 'sbuf.* never written \[test_undefined.py:\d+\]",
    )


def test_an_input_written_in_place_is_an_output():
    def kernel(x):
        nisa.dma_copy(x, half())
        return x

    refused(kernel, r"return: operand 'x'.*16 undefined.*came from dma_copy: operand 'src'")


def test_undefined_elements_that_nobody_needs_are_no_error():
    def kernel(x):
        y = nl.ndarray((4, 4), dtype=F32, buffer=nl.shared_hbm)
        a = nl.ndarray((4, 8), dtype=F32)
        nisa.tensor_scalar(a, half(), nl.add, 1.0)
        nisa.dma_copy(y, a[:, 0:4])
        return y

    assert (nki.jit(kernel)(np.zeros((4, 8), dtype=np.float32)) == 1).all()


def test_what_is_written_again_is_defined_again():
    def kernel(x):
        a = nl.ndarray((4, 8), dtype=F32)
        nisa.tensor_copy(a, half())
        nisa.memset(a[:, 4:8], 2.0)
        nisa.dma_copy(x, a)
        return x

    assert nki.jit(kernel)(np.zeros((4, 8), dtype=np.float32)).sum() == 32


def test_an_activation_checks_the_range_of_defined_arguments_alone():
    def kernel(x):
        a, b = nl.ndarray((4, 8), dtype=F32), nl.ndarray((4, 8), dtype=F32)
        nisa.memset(a[:, 0:4], 1.0)
        nisa.activation(b, nl.log, a)
        nisa.dma_copy(x[:, 0:4], b[:, 0:4])
        return x

    nki.jit(kernel)(np.zeros((4, 8), dtype=np.float32))


def undefined_index(dtype=I32, shape=(1, 1)):
    t = nl.ndarray(shape, dtype=dtype)
    nisa.tensor_copy(t, nl.ndarray(shape, dtype=dtype))
    return t


@pytest.mark.parametrize(
    ("act", "match"),
    [
        (lambda x: nisa.dma_copy(half()[:, 0:4], x.ap([[8, 4], [1, 4]], scalar_offset=undefined_index())),
         r"dma_copy: operand 'src.scalar_offset'.*came from tensor_copy"),
        (lambda x: nisa.dma_copy(half(), x.ap([[8, 4], [1, 8]], vector_offset=undefined_index(shape=(4, 1)))),
         r"'src.vector_offset'.*came from tensor_copy"),
        (lambda x: nisa.nc_n_gather(half(), half(), undefined_index(U32, (4, 8))), r"nc_n_gather: operand 'indices'"),
        (lambda x: nisa.register_load(nisa.register_alloc(), undefined_index()), r"register_load: operand 'src'"),
        (lambda x: nisa.set_rng_seed(undefined_index()), "set_rng_seed"),
    ],
)  # fmt: skip
def test_addresses_and_branches_are_refused(act, match):
    def kernel(x):
        act(x)
        return x

    refused(kernel, match)


def test_undefined_elements_cross_to_the_other_core():
    def kernel(x):
        y = nl.ndarray((4, 8), dtype=F32, buffer=nl.shared_hbm)
        mine, theirs, other = half(), nl.ndarray((4, 8), dtype=F32), 1 - nl.program_id(0)
        nisa.sendrecv(mine, theirs, other, other, 0)
        if nl.program_id(0) == 0:
            nisa.dma_copy(y, theirs)
        return y

    refused_on_two = nki.jit(kernel)[2]
    with pytest.raises(UndefinedReadError, match=r"16 undefined.*came from sendrecv: operand 'src'"):
        refused_on_two(np.zeros((4, 8), dtype=np.float32))
