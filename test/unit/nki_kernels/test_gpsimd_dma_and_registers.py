"""Instructions of GpSimd, DMA and the sequencer, and functions of nl, against numpy."""

import ml_dtypes
import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import torch
from instruction_runs import BF16, F32, I32, RNG, rand, run


# ---- GpSimd
def test_iota():
    y = run(lambda dst: nisa.iota(dst, [[10, 3], [1, 4]], offset=5, channel_multiplier=100), out=(2, 3, 4), dtype=I32)
    p, i, j = np.ogrid[0:2, 0:3, 0:4]
    np.testing.assert_array_equal(y, 5 + 100 * p + 10 * i + j)


def test_affine_select_makes_a_causal_mask():
    x = rand(8, 12)
    y = run(lambda dst, x: nisa.affine_select(dst, [[-1, 12]], 1, x, -9.0, nl.greater_equal, offset=2), x)
    q, k = np.ogrid[0:8, 0:12]
    np.testing.assert_array_equal(y, np.where(k <= q + 2, x, -9))


def test_gathers():
    x, at = rand(4, 10), RNG.integers(0, 10, (4, 6)).astype(np.uint32)
    y = run(lambda dst, x, at: nisa.nc_n_gather(dst, x, at), x, at, out=(4, 6))
    np.testing.assert_array_equal(y, np.take_along_axis(x, at.astype(int), axis=1))


def test_partition_reduce():
    x = rand(50, 7)
    y = run(lambda dst, x: nisa.tensor_partition_reduce(dst, nl.add, x), x, out=(1, 7))
    np.testing.assert_allclose(y, x.sum(axis=0, keepdims=True), rtol=1e-5, atol=1e-6)


def test_nonzero_with_count():
    x = np.zeros((128, 6), dtype=np.float32)
    x[0, [1, 4]] = 1
    x[16, [0, 5]] = 2

    def body(dst, x):
        nisa.memset(dst, 0)
        nisa.nonzero_with_count(dst, x, index_offset=10)

    y = run(body, x, out=(128, 7), dtype=I32)
    np.testing.assert_array_equal(y[0], [11, 14, -1, -1, -1, -1, 2])
    np.testing.assert_array_equal(y[16], [10, 15, -1, -1, -1, -1, 2])
    np.testing.assert_array_equal(y[1], 0)


# ---- DMA
def test_dma_casts_and_reshapes_by_order():
    x = rand(6, 4)
    y = run(lambda dst, x: nisa.dma_copy(dst, x), x, out=(4, 6), dtype=BF16)
    np.testing.assert_array_equal(y, x.astype(ml_dtypes.bfloat16).reshape(4, 6))


def _from_hbm(body, out, *arrays):
    def kernel(*args):
        result = nl.ndarray(out, dtype=F32, buffer=nl.shared_hbm)
        tile = nl.ndarray(out, dtype=F32)
        body(tile, *args)
        nisa.dma_copy(result, tile)
        return result

    return np.asarray(nki.jit(kernel)(*arrays))


def _indices(h):
    tile = nl.ndarray(h.shape, dtype=h.dtype)
    nisa.dma_copy(tile, h)
    return tile


def test_gather_and_scatter_by_row():
    x, rows = rand(10, 6), np.array([[3], [0], [9], [3]], dtype=np.int32)

    def gather(tile, x, rows):
        nisa.dma_copy(tile, x.ap([[6, 4], [1, 3]], offset=2, vector_offset=_indices(rows)))

    np.testing.assert_array_equal(_from_hbm(gather, (4, 3), x, rows), x[rows[:, 0], 2:5])

    def scatter(x, rows, new):
        tile = nl.ndarray(new.shape, dtype=new.dtype)
        nisa.dma_copy(tile, new)
        nisa.dma_copy(x.ap([[6, 3], [1, 6]], vector_offset=_indices(rows)), tile)
        return x

    new, at = rand(3, 6), np.array([[7], [1], [4]], dtype=np.uint32)
    want = x.copy()
    want[[7, 1, 4]] = new
    nki.jit(scatter)(x, at, new)
    np.testing.assert_array_equal(x, want)


def test_rows_out_of_bounds_are_skipped_if_asked():
    x, rows = rand(4, 6), np.array([[3], [4], [-1], [0]], dtype=np.int32)

    def body(tile, x, rows):
        nisa.memset(tile, 5.0)
        nisa.dma_copy(
            tile, x.ap([[6, 4], [1, 6]], vector_offset=_indices(rows)), oob_mode=nisa.oob_mode.skip
        )  # fmt: skip

    np.testing.assert_array_equal(_from_hbm(body, (4, 6), x, rows), [x[3], np.full(6, 5), np.full(6, 5), x[0]])


def test_scalar_offset_steps_in_units_of_the_base_tensor():
    x, at = rand(5, 4, 3), np.array([[2]], dtype=np.int32)

    def body(tile, x, at):
        nisa.dma_copy(tile, x.ap([[3, 4], [1, 3]], scalar_offset=_indices(at), indirect_dim=0))

    np.testing.assert_array_equal(_from_hbm(body, (4, 3), x, at), x[2])


def test_scalar_offset_from_a_loop_register():
    x = rand(5, 8)

    def body(tile, x):
        nisa.memset(tile, 0.0)
        row = nl.ndarray((1, 8), dtype=F32)
        for i in nl.dynamic_range(1, 4):
            nisa.dma_copy(row, x.ap([[8, 1], [1, 8]], scalar_offset=i))
            nisa.tensor_tensor(tile, tile, row, nl.add)

    np.testing.assert_allclose(_from_hbm(body, (1, 8), x), x[1:4].sum(axis=0, keepdims=True), rtol=1e-5, atol=1e-6)


def test_scalar_offset_on_chip():
    x, at = rand(4, 10), np.array([[6]], dtype=np.int32)
    y = run(
        lambda dst, x, at: nisa.tensor_copy(dst, x.ap([[10, 4], [1, 3]], scalar_offset=at, indirect_dim=1)),
        x,
        at,
        out=(4, 3),
    )
    np.testing.assert_array_equal(y, x[:, 6:9])


def test_dma_transpose():
    x = rand(6, 5, 4)
    y = _from_hbm(lambda tile, x: nisa.dma_transpose(tile, x), (4, 5, 6), x)
    np.testing.assert_array_equal(y, x.transpose(2, 1, 0))


def test_dma_compute_adds_and_scatters():
    a, b = rand(4, 6), rand(4, 6)
    y = _from_hbm(lambda tile, a, b: nisa.dma_compute(tile, [a, b, a], nl.add), (4, 6), a, b)
    np.testing.assert_allclose(y, 2 * a + b, rtol=1e-6)

    def scatter_add(x, rows, new):
        tile = nl.ndarray(new.shape, dtype=new.dtype)
        nisa.dma_copy(tile, new)
        into = x.ap([[6, 2], [1, 6]], vector_offset=_indices(rows))
        nisa.dma_compute(into, [into, tile], nl.add)
        return x

    x, new = rand(5, 6), rand(2, 6)
    want = x.copy()
    want[[4, 1]] += new
    nki.jit(scatter_add)(x, np.array([[4], [1]], dtype=np.int32), new)
    np.testing.assert_allclose(x, want, rtol=1e-6)


def test_a_repeated_destination_keeps_the_last_value():
    x = rand(4, 10)

    def body(dst, x):
        nisa.activation(dst.ap([[1, 4], [0, 10]]), nl.copy, x)

    np.testing.assert_array_equal(run(body, x, out=(4, 1)), x[:, 9:])


# ---- registers and nl
def test_while_loop_runs_until_zero():
    def kernel(x):
        tile = nl.ndarray((1, 1), dtype=I32)
        nisa.dma_copy(tile, x)

        def body(reg):
            nisa.tensor_scalar(tile, tile, nl.subtract, 1)
            nisa.register_load(reg, tile)
            return reg

        reg = nisa.register_alloc(1)
        nl.while_loop(reg, body)
        nisa.dma_copy(x, tile)
        return x

    assert nki.jit(kernel)(np.array([[5]], dtype=np.int32))[0, 0] == 0


def test_nl_functions():
    x, y = rand(8, 16), rand(8, 16)

    def body(dst, x, y):
        nisa.tensor_copy(dst, nl.multiply(nl.add(x, y), nl.exp(x)))

    np.testing.assert_allclose(run(body, x, y), (x + y) * np.exp(x), rtol=1e-5, atol=1e-6)

    def soft(dst, x):
        nisa.tensor_copy(dst, nl.softmax(x, axis=-1))

    np.testing.assert_allclose(run(soft, x), torch.softmax(torch.from_numpy(x), -1).numpy(), rtol=1e-5, atol=1e-7)
