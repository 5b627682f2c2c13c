"""Launching: arguments in, results out, numpy and torch, one core and two, and what a launch refuses."""

import ml_dtypes
import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
import torch

from nki_kernels.interpreter import DivergenceError, KernelError, UndefinedReadError


@nki.jit
def double(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=2.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


@pytest.mark.parametrize("launch", [double, double[1], double[2], nki.simulate(double), nki.simulate(double[2])])
def test_every_way_to_launch_gives_the_same(launch):
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(launch(x), 2 * x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_torch_in_torch_out(dtype):
    x = torch.arange(12).reshape(4, 3).to(dtype)
    y = double(x)
    assert y.dtype == dtype
    assert torch.equal(y.float(), (2 * x.float()).to(dtype).float())


def test_numpy_bfloat16_rounds_to_nearest_even():
    x = np.array([[1.0 + 2**-8, 1.0 + 3 * 2**-8]], dtype=np.float32)

    def cast(x):
        out = nl.ndarray(x.shape, dtype=nl.bfloat16, buffer=nl.shared_hbm)
        tile = nl.ndarray(x.shape, dtype=nl.float32)
        low = nl.ndarray(x.shape, dtype=nl.bfloat16)
        nisa.dma_copy(tile, x)
        nisa.tensor_copy(low, tile)
        nisa.dma_copy(out, low)
        return out

    y = nki.simulate(cast)(x)
    assert y.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(y.astype(np.float32), [[1.0, 1.0 + 2**-6]])


def test_an_input_written_by_the_kernel_is_updated_and_may_be_returned():
    def bump(x):
        tile = nl.ndarray(x.shape, dtype=x.dtype)
        nisa.memset(tile, 7.0)
        nisa.dma_copy(x[1:2, :], tile[0:1, :])
        return x

    x = np.zeros((2, 3), dtype=np.float32)
    y = nki.jit(bump)(x)
    np.testing.assert_array_equal(x, [[0, 0, 0], [7, 7, 7]])
    np.testing.assert_array_equal(x, y)


def test_lnc2_exchanges_tiles():
    @nki.jit
    def exchange(x):
        me = nl.program_id(0)
        out = nl.ndarray((2, 4), dtype=x.dtype, buffer=nl.shared_hbm)
        mine, theirs = nl.ndarray((1, 4), dtype=x.dtype), nl.ndarray((1, 4), dtype=x.dtype)
        nisa.dma_copy(mine, x[me : me + 1, :])
        nisa.sendrecv(src=mine, dst=theirs, send_to_rank=1 - me, recv_from_rank=1 - me, pipe_id=0)
        nisa.tensor_scalar(theirs, theirs, nl.add, 10.0 * (me + 1))
        nisa.dma_copy(out[me : me + 1, :], theirs)
        return out

    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(exchange[2](x), x[::-1] + np.array([[10.0], [20.0]]))


def test_lnc2_programs_at_different_rendezvous_are_refused():
    def kernel(x):
        me = nl.program_id(0)
        a, b = nl.ndarray((1, 4), dtype=x.dtype), nl.ndarray((1, 4), dtype=x.dtype)
        nisa.dma_copy(a, x)
        nisa.sendrecv(src=a, dst=b, send_to_rank=1 - me, recv_from_rank=1 - me, pipe_id=me)
        return x

    with pytest.raises(DivergenceError, match="sendrecv"):
        nki.jit(kernel)[2](np.zeros((1, 4), dtype=np.float32))


def test_lnc2_one_program_ending_early_is_refused():
    def kernel(x):
        if nl.program_id(0) == 0:
            nisa.core_barrier(x, (0, 1))
        return x

    with pytest.raises(DivergenceError, match="core 1 ended without it"):
        nki.jit(kernel)[2](np.zeros((1, 4), dtype=np.float32))


def test_lnc2_dynamic_control_flow_must_agree():
    def kernel(x):
        for _ in nl.dynamic_range(1 + nl.program_id(0)):
            pass
        return x

    with pytest.raises(DivergenceError, match="dynamic control flow differs"):
        nki.jit(kernel)[2](np.zeros((1, 4), dtype=np.float32))


def test_outputs_must_be_in_shared_hbm():
    def kernel(x):
        return nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.hbm, name="mine")

    with pytest.raises(KernelError, match=r"return.*mine.*shared_hbm"):
        nki.jit(kernel)(np.zeros((1, 4), dtype=np.float32))


def test_outputs_must_be_written_everywhere():
    def kernel(x):
        out = nl.ndarray((2, 4), dtype=x.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(out[0:1, :], x)
        return out

    with pytest.raises(UndefinedReadError, match="4 undefined elements"):
        nki.jit(kernel)(np.zeros((1, 4), dtype=np.float32))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (([np.zeros((1, 4), dtype=np.float32)],), "a list is not a kernel argument"),
        ((np.zeros((1, 4)),), "no float64"),
        ((np.zeros((1, 4), dtype=np.int64),), "no int64"),
    ],
)
def test_arguments_that_a_launch_refuses(args, message):
    with pytest.raises(KernelError, match=message):
        double(*args)


@pytest.mark.parametrize("lnc", [0, 3, (2, 1), True])
def test_a_launch_takes_one_or_two_cores(lnc):
    with pytest.raises(KernelError, match="takes 1 or 2"):
        double[lnc]


def test_instructions_need_a_kernel():
    with pytest.raises(KernelError, match="called outside a kernel"):
        nl.ndarray((1, 4), dtype=nl.float32)
