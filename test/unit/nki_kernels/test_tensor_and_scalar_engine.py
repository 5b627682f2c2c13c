"""Instructions of TensorE and ScalarE against numpy: what they compute, in which order, with which rounding."""

import ml_dtypes
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
import torch
from instruction_runs import BF16, F32, rand, run


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
