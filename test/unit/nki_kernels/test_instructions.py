"""Each instruction against numpy: what it computes, in which order, with which rounding."""

import ml_dtypes
import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
import torch

F32, BF16, I32, U32 = nl.float32, nl.bfloat16, nl.int32, nl.uint32
RNG = np.random.default_rng(0)


def rand(*shape, scale=1.0):
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def run(body, *arrays, out=None, dtype=F32):
    """Load arrays into SBUF, run ``body(dst, *tiles)``, return dst as stored in ``dtype``."""
    shape = out or arrays[0].shape

    def kernel(*args):
        result = nl.ndarray(shape, dtype=dtype, buffer=nl.shared_hbm)
        tiles = []
        for a in args:
            tile = nl.ndarray(a.shape, dtype=a.dtype)
            nisa.dma_copy(tile, a)
            tiles.append(tile)
        dst = nl.ndarray(shape, dtype=dtype)
        body(dst, *tiles)
        nisa.dma_copy(result, dst)
        return result

    return np.asarray(nki.jit(kernel)(*arrays))


def psum_of(tile, dtype=F32):
    out = nl.ndarray(tile.shape, dtype=dtype, buffer=nl.psum)
    nisa.tensor_copy(out, tile)
    return out


# ---- TensorE
def test_matmul_contracts_partitions():
    a, b = rand(96, 40), rand(96, 70)

    def body(dst, a, b):
        acc = nl.ndarray((40, 70), dtype=F32, buffer=nl.psum)
        nisa.nc_matmul(acc, a, b)
        nisa.tensor_copy(dst, acc)

    np.testing.assert_allclose(run(body, a, b, out=(40, 70)), a.T @ b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "times"),
    [((None, None), 2), ((None, None, None), 3), ((False, True), 2), ((False, False), 1), ((None, False, None), 2)],
)
def test_accumulation(flags, times):
    a, b = rand(8, 4), rand(8, 6)

    def body(dst, a, b):
        acc = nl.ndarray((4, 6), dtype=F32, buffer=nl.psum)
        for flag in flags:
            nisa.nc_matmul(acc, a, b, accumulate=flag)
        nisa.tensor_copy(dst, acc)

    np.testing.assert_allclose(run(body, a, b, out=(4, 6)), times * (a.T @ b), rtol=1e-5, atol=1e-5)


def test_memset_does_not_start_an_accumulation():
    a, b = rand(8, 4), rand(8, 6)

    def body(dst, a, b):
        acc = nl.zeros((4, 6), dtype=F32, buffer=nl.psum)
        nisa.memset(acc, 100.0)
        nisa.nc_matmul(acc, a, b)
        nisa.tensor_copy(dst, acc)

    np.testing.assert_allclose(run(body, a, b, out=(4, 6)), a.T @ b, rtol=1e-5, atol=1e-5)


def test_overlapping_matmuls_add_only_where_they_overlap():
    a = np.ones((1, 1), dtype=np.float32)
    b = np.ones((1, 4), dtype=np.float32)

    def body(dst, a, b):
        acc = nl.ndarray((1, 6), dtype=F32, buffer=nl.psum)
        nisa.nc_matmul(acc[:, 0:4], a, b)
        nisa.nc_matmul(acc[:, 2:6], a, b)
        nisa.tensor_copy(dst, acc)

    np.testing.assert_array_equal(run(body, a, b, out=(1, 6)), [[1, 1, 2, 2, 1, 1]])


def test_column_tiles_land_on_their_partitions():
    a, b = rand(64, 32), rand(64, 16)

    def body(dst, a, b):
        acc = nl.ndarray((128, 16), dtype=F32, buffer=nl.psum)
        for c in range(4):
            nisa.nc_matmul(acc[nl.ds(32 * c, 32), :], a, b, tile_position=(0, 32 * c), tile_size=(64, 32))
        nisa.tensor_copy(dst, acc)

    np.testing.assert_allclose(run(body, a, b, out=(128, 16)), np.tile(a.T @ b, (4, 1)), rtol=1e-5, atol=1e-5)


def test_double_row_contracts_pairs():
    a, b = rand(16, 2, 8).astype(ml_dtypes.float8_e4m3), rand(16, 2, 24).astype(ml_dtypes.float8_e5m2)

    def body(dst, a, b):
        acc = nl.ndarray((8, 24), dtype=F32, buffer=nl.psum)
        nisa.nc_matmul(acc, a, b, perf_mode="double_row")
        nisa.tensor_copy(dst, acc)

    want = np.einsum("kli,klj->ij", a.astype(np.float32), b.astype(np.float32))
    np.testing.assert_allclose(run(body, a, b, out=(8, 24)), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("engine", [nisa.engine.unknown, nisa.engine.vector])
def test_transpose_is_exact(engine):
    x = rand(20, 32).astype(ml_dtypes.bfloat16)

    def body(dst, x):
        on_tensor = engine is nisa.engine.unknown
        out = nl.ndarray((32, 20), dtype=BF16, buffer=nl.psum if on_tensor else nl.sbuf)
        nisa.nc_transpose(out, x, engine=engine)
        nisa.tensor_copy(dst, out)

    np.testing.assert_array_equal(run(body, x, out=(32, 20), dtype=BF16), x.T)


def test_fp8_transposes_into_every_second_byte():
    x = rand(16, 24).astype(ml_dtypes.float8_e4m3)

    def body(dst, x):
        wide = nl.ndarray((24, 32), dtype=nl.float8_e4m3, buffer=nl.psum)
        nisa.nc_transpose(wide[:, 0:32:2], x)
        nisa.tensor_copy(dst, wide[:, 0:32:2])

    np.testing.assert_array_equal(run(body, x, out=(24, 16), dtype=nl.float8_e4m3), x.T)


# ---- ScalarE
def test_sqrt_of_zero_is_zero():
    x = np.array([[0.0, 4.0]], dtype=np.float32)
    np.testing.assert_array_equal(run(lambda dst, x: nisa.activation(dst, nl.sqrt, x), x), [[0, 2]])


@pytest.mark.parametrize(
    ("op", "ref"),
    [
        (nl.exp, torch.exp),
        (nl.silu, torch.nn.functional.silu),
        (nl.sigmoid, torch.sigmoid),
        (nl.gelu, torch.nn.functional.gelu),
        (nl.gelu_apprx_tanh, lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
        (nl.softplus, torch.nn.functional.softplus),
        (nl.tanh, torch.tanh),
        (nl.mish, torch.nn.functional.mish),
        (nl.erf, torch.erf),
        (nl.square, torch.square),
        (nl.relu, torch.relu),
        (nl.sign, torch.sign),
        (nl.abs, torch.abs),
    ],
)
def test_activation_functions(op, ref):
    x = rand(16, 64, scale=3.0)
    y = run(lambda dst, x: nisa.activation(dst, op, x), x)
    np.testing.assert_allclose(y, ref(torch.from_numpy(x)).numpy(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("op", "function"),
    [(nl.silu_dx, "silu"), (nl.gelu_dx, "gelu"), (nl.erf_dx, "erf")],
)
def test_activation_derivatives(op, function):
    x = torch.from_numpy(rand(8, 32)).requires_grad_()
    forward = torch.erf if function == "erf" else getattr(torch.nn.functional, function)
    (want,) = torch.autograd.grad(forward(x).sum(), x)
    y = run(lambda dst, x: nisa.activation(dst, op, x), x.detach().numpy())
    np.testing.assert_allclose(y, want.numpy(), rtol=1e-5, atol=1e-5)


def test_activation_scales_then_adds_bias():
    x, scale, bias = rand(8, 16), rand(8, 1), rand(8, 1).astype(ml_dtypes.bfloat16)
    y = run(lambda dst, x, s, b: nisa.activation(dst, nl.copy, x, bias=b, scale=s), x, scale, bias, out=(8, 16))
    np.testing.assert_allclose(y, x * scale + bias.astype(np.float32), rtol=1e-6, atol=1e-6)


def test_activation_registers_persist_between_instructions():
    x = rand(8, 16)

    def body(dst, x):
        scratch = nl.ndarray((8, 16), dtype=F32)
        cmd = nisa.reduce_cmd
        nisa.activation(scratch, nl.copy, x, reduce_op=nl.add, reduce_cmd=cmd.reset_reduce)
        nisa.activation(scratch, nl.copy, x)
        nisa.activation(scratch, nl.square, x, reduce_op=nl.add, reduce_cmd=cmd.reduce, reduce_res=dst)

    want = (x + x * x).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(run(body, x, out=(8, 1)), want, rtol=1e-5, atol=1e-5)


def test_activation_reduce_replaces():
    x = rand(8, 16)

    def body(dst, x):
        scratch = nl.ndarray((8, 16), dtype=BF16)
        for _ in range(2):
            nisa.activation_reduce(scratch, nl.exp, x, nl.add, dst)

    np.testing.assert_allclose(run(body, x, out=(8, 1)), np.exp(x).sum(axis=1, keepdims=True), rtol=1e-6)


# ---- VectorE
@pytest.mark.parametrize(
    ("op", "ref"),
    [
        (nl.add, np.add),
        (nl.subtract, np.subtract),
        (nl.multiply, np.multiply),
        (nl.maximum, np.maximum),
        (nl.minimum, np.minimum),
        (nl.greater, np.greater),
        (nl.less_equal, np.less_equal),
        (nl.not_equal, np.not_equal),
        (nl.logical_and, np.logical_and),
    ],
)
def test_tensor_tensor(op, ref):
    a, b = np.round(rand(8, 16)), np.round(rand(8, 16))
    y = run(lambda dst, a, b: nisa.tensor_tensor(dst, a, b, op), a, b)
    np.testing.assert_array_equal(y, ref(a, b).astype(np.float32))


def test_tensor_tensor_broadcasts_only_by_stride_zero():
    a, b = rand(8, 16), rand(8, 1)
    y = run(lambda dst, a, b: nisa.tensor_tensor(dst, a, b.ap([[1, 8], [0, 16]]), nl.add), a, b)
    np.testing.assert_array_equal(y, a + b)


def test_mixed_types_compute_in_float32_and_round_on_write():
    a = rand(8, 16).astype(ml_dtypes.bfloat16)
    b = rand(8, 16)
    y = run(lambda dst, a, b: nisa.tensor_tensor(dst, a, b, nl.multiply), a, b, dtype=BF16)
    np.testing.assert_array_equal(y, (a.astype(np.float32) * b).astype(ml_dtypes.bfloat16))


def test_float_to_integer_rounds_to_even_and_saturates():
    x = np.array([[0.5, 1.5, 2.5, -1.5, 300.0, -300.0, 127.4, 3e9]], dtype=np.float32)
    y = run(lambda dst, x: nisa.tensor_copy(dst, x), x, dtype=nl.int8)
    np.testing.assert_array_equal(y, [[0, 2, 2, -2, 127, -128, 127, 127]])
    y = run(lambda dst, x: nisa.tensor_copy(dst, x), x, dtype=I32)
    assert y[0, -1] == 2**31 - 1


def test_32_bit_integers_are_exact_on_gpsimd_and_float32_on_vector():
    a = np.array([[2**24 + 1]], dtype=np.int32)
    one = np.array([[2]], dtype=np.int32)
    exact = run(lambda dst, a, b: nisa.tensor_tensor(dst, a, b, nl.add), a, one, dtype=I32)
    rounded = run(lambda dst, a, b: nisa.tensor_tensor(dst, a, b, nl.add, engine=nisa.engine.vector), a, one, dtype=I32)
    assert exact[0, 0] == 2**24 + 3
    assert rounded[0, 0] == 2**24 + 2


def test_bit_operators_keep_bits():
    a = np.array([[0xF0F0F0F0, 0x80000001]], dtype=np.uint32)
    b = np.array([[0x0FF00FF0, 0xFFFFFFFF]], dtype=np.uint32)
    y = run(lambda dst, a, b: nisa.tensor_tensor(dst, a, b, nl.bitwise_xor), a, b, dtype=U32)
    np.testing.assert_array_equal(y, a ^ b)
    y = run(
        lambda dst, a: nisa.tensor_scalar(dst, a, nl.right_shift, 4, op1=nl.bitwise_and, operand1=0xFF), a, dtype=U32
    )
    np.testing.assert_array_equal(y, (a >> 4) & 0xFF)


def test_tensor_scalar_applies_in_order_and_reverses():
    x, col = rand(8, 16), rand(8, 1)
    y = run(
        lambda dst, x, c: nisa.tensor_scalar(
            dst, x, nl.subtract, c, reverse0=True, op1=nl.multiply, operand1=3.0
        ),
        x,
        col,
    )  # fmt: skip
    np.testing.assert_allclose(y, (col - x) * 3, rtol=1e-6)


def test_scalar_tensor_tensor():
    x, col, z = rand(8, 16), rand(8, 1), rand(8, 16)
    y = run(
        lambda dst, x, c, z: nisa.scalar_tensor_tensor(dst, x, nl.multiply, c, nl.subtract, z, reverse1=True), x, col, z
    )
    np.testing.assert_allclose(y, z - x * col, rtol=1e-5, atol=1e-6)


def test_scalar_tensor_tensor_takes_a_column_of_any_type():
    x, col, z = rand(8, 16), rand(8, 1).astype(BF16.numpy), rand(8, 16)
    y = run(lambda dst, x, c, z: nisa.scalar_tensor_tensor(dst, x, nl.multiply, c, nl.add, z), x, col, z)
    np.testing.assert_allclose(y, x * col.astype(np.float32) + z, rtol=1e-5, atol=1e-6)


def test_scan_carries_float32_whatever_it_writes():
    a, b = rand(4, 200, scale=0.5), rand(4, 200)
    y = run(lambda dst, a, b: nisa.tensor_tensor_scan(dst, a, b, 0.5, nl.multiply, nl.add), a, b, dtype=BF16)
    r, want = np.full(4, 0.5, dtype=np.float32), []
    for i in range(200):
        r = a[:, i] * r + b[:, i]
        want.append(r)
    np.testing.assert_array_equal(y, np.stack(want, axis=1).astype(ml_dtypes.bfloat16))


def test_tensor_reduce_folds_trailing_axes():
    x = rand(8, 3, 4, 5)
    y = run(lambda dst, x: nisa.tensor_reduce(dst, nl.add, x, axis=(2, 3)), x, out=(8, 3))
    np.testing.assert_allclose(y, x.sum(axis=(2, 3)), rtol=1e-5, atol=1e-5)
    y = run(lambda dst, x: nisa.tensor_reduce(dst, nl.maximum, x, axis=3, negate=True), x, out=(8, 12))
    np.testing.assert_array_equal(y, -x.max(axis=3).reshape(8, 12))


def test_tensor_scalar_reduce():
    x = rand(8, 16)

    def body(dst, x):
        nisa.tensor_scalar_reduce(nl.ndarray((8, 16), dtype=F32), x, nl.abs, 0.0, nl.maximum, dst)

    np.testing.assert_array_equal(run(body, x, out=(8, 1)), np.abs(x).max(axis=1, keepdims=True))


def test_reciprocal():
    x = rand(8, 16) + 5
    np.testing.assert_allclose(run(lambda dst, x: nisa.reciprocal(dst, x), x), 1 / x, rtol=1e-6)


def test_copy_predicated_leaves_the_rest():
    x, keep = rand(4, 8), (RNG.random((4, 8)) < 0.5).astype(np.uint8)

    def body(dst, x, keep):
        nisa.memset(dst, -1.0)
        nisa.tensor_copy_predicated(dst, x, keep)

    np.testing.assert_array_equal(run(body, x, keep), np.where(keep, x, -1))


def test_select_reduce_and_range_select():
    x, mask = rand(4, 16), (RNG.random((4, 16)) < 0.5).astype(np.uint8)
    y = run(lambda dst, x, m: nisa.select_reduce(dst, m, x, -7.0), x, mask)
    np.testing.assert_array_equal(y, np.where(mask, x, -7))
    low, high = np.full((4, 1), 3, np.float32), np.arange(8, 12, dtype=np.float32)[:, None]

    def body(dst, x, low, high):
        nisa.range_select(
            nl.ndarray((4, 16), dtype=F32), x, nl.greater_equal, nl.less, low, high, reduce_res=dst, range_start=2
        )

    index = np.arange(16) + 2
    want = np.where((index >= low) & (index < high), x, -np.inf).max(axis=1, keepdims=True)
    np.testing.assert_array_equal(run(body, x, low, high, out=(4, 1)), want)


def test_stream_shuffle_moves_within_and_between_quadrants():
    x = rand(64, 4)

    def body(dst, x):
        nisa.tensor_copy(dst, x)
        nisa.nc_stream_shuffle(dst[32:64, :], x[0:32, :], [5] * 16 + [255] * 16)

    y = run(body, x)
    want = x.copy()
    want[32:48] = x[5]
    np.testing.assert_array_equal(y, want)


def test_bn_stats_and_aggr_give_mean_and_variance():
    x = rand(8, 500)

    def body(dst, x):
        stats = nl.ndarray((8, 6), dtype=F32)
        nisa.bn_stats(stats, x)
        nisa.bn_aggr(dst, stats)

    y = run(body, x, out=(8, 2))
    np.testing.assert_allclose(y[:, 0], x.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(y[:, 1], x.var(axis=1), rtol=1e-5)


def test_max8_find_and_replace():
    x = np.array([[3, 9, 9, 1, 5, 7, 2, 8, 6, 4]], dtype=np.float32)

    def top(dst, x):
        nisa.max8(dst, x)

    def where(dst, x):
        best = nl.ndarray((1, 8), dtype=F32)
        nisa.max8(best, x)
        nisa.nc_find_index8(dst, x, best)

    def replace(dst, x):
        best = nl.ndarray((1, 8), dtype=F32)
        nisa.max8(best, x)
        nisa.nc_match_replace8(dst, x, best, -1.0)

    np.testing.assert_array_equal(run(top, x, out=(1, 8)), [[9, 9, 8, 7, 6, 5, 4, 3]])
    np.testing.assert_array_equal(run(where, x, out=(1, 8), dtype=U32), [[1, 2, 7, 5, 8, 4, 9, 0]])
    np.testing.assert_array_equal(run(replace, x), [[-1, -1, -1, 1, -1, -1, 2, -1, -1, -1]])


def test_a_missing_value_is_found_at_all_ones():
    x = np.zeros((1, 8), dtype=np.float32)
    vals = np.array([[0, 5, 5, 5, 5, 5, 5, 5]], dtype=np.float32)
    y = run(lambda dst, x, v: nisa.nc_find_index8(dst, x, v), x, vals, dtype=nl.uint16)
    np.testing.assert_array_equal(y, [[0] + [65535] * 7])


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
