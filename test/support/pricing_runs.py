"""Pricing a few instructions by themselves."""

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np

from nki_kernels.interpreter import PriceList, profile
from nki_kernels.interpreter.report import Report

F32, BF16, I32 = nl.float32, nl.bfloat16, nl.int32
ALONE = PriceList().having(tensor_throttle=1.0)
"""What holds where the rest of the chip is idle, as in the measurements."""


def priced(body, *arrays, lnc=None, prices=ALONE) -> Report:
    def kernel(*args):
        body(*args)
        return args[0]

    jitted = nki.jit(kernel)
    return profile(jitted[lnc] if lnc else jitted, *(arrays or (np.zeros((1, 1), np.float32),)), prices=prices)[1]


def sb(*shape, dtype=F32):
    return nl.zeros(shape, dtype=dtype)


def ps(*shape, dtype=F32):
    t = nl.ndarray(shape, dtype=dtype, buffer=nl.psum)
    nisa.memset(t, 0.0)
    return t


def node(report, op, at=-1):
    return [n for n in report.nodes if n.instr.op == op][at]


def matmul(k, m, n, dtype, accumulate=False, stationary=None):
    nisa.nc_matmul(
        nl.ndarray((m, n), dtype=F32, buffer=nl.psum),
        sb(k, m, dtype=dtype) if stationary is None else stationary,
        sb(k, n, dtype=dtype), accumulate=accumulate,
    )  # fmt: skip
