"""Instructions of VectorE against numpy: what they compute, in which order, with which rounding."""

import ml_dtypes
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from instruction_runs import BF16, F32, I32, RNG, U32, rand, run


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
