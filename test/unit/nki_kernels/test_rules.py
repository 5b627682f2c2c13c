"""What the interpreter refuses: one case a rule, each matched on instruction, operand and rule."""

import re

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from refused_cases import CASES, F32, sb

from nki_kernels.interpreter import CapacityError, KernelError, NotSimulatedError


@pytest.mark.parametrize("case", CASES)
def test_refused(case):
    act, match = CASES[case]

    def kernel(x):
        act(x)
        return x

    with pytest.raises(KernelError) as caught:
        nki.jit(kernel)(np.zeros((4, 8), dtype=np.float32))
    assert re.search(match, str(caught.value)), str(caught.value)


def test_the_error_names_the_kernel_line():
    def kernel(x):
        nisa.tensor_copy(sb(4, 8), x)
        return x

    with pytest.raises(KernelError, match=r"\[test_rules.py:\d+\]"):
        nki.jit(kernel)(np.zeros((4, 8), dtype=np.float32))


def _live_tiles(count, columns, buffer, keep):
    def kernel(x):
        tiles = []
        for _ in range(count):
            tile = nl.ndarray((128, columns), dtype=F32, buffer=buffer)
            nisa.memset(tile, 1.0)
            tiles.append(tile)
            if not keep:
                nisa.tensor_scalar(tile, tile, nl.add, 1.0)
        for tile in tiles if keep else []:
            nisa.tensor_scalar(tile, tile, nl.add, 1.0)
        return x

    return nki.jit(kernel)


@pytest.mark.parametrize(
    ("buffer", "count", "columns", "match"),
    [
        (nl.sbuf, 4, 16384, r"sbuf: over capacity.*262144 bytes a partition.*212984"),
        (nl.psum, 9, 512, r"psum: over capacity.*9 banks.*there are 8"),
        (nl.psum, 9, 4, r"9 banks"),
    ],
)
def test_capacity_counts_what_is_live(buffer, count, columns, match):
    x = np.zeros((4, 8), dtype=np.float32)
    _live_tiles(count, columns, buffer, keep=False)(x)
    with pytest.raises(CapacityError, match=match):
        _live_tiles(count, columns, buffer, keep=True)(x)


@pytest.mark.parametrize("name", ["exponential", "activate2", "topk"])
def test_what_is_not_simulated_says_so(name):
    def kernel(x):
        getattr(nisa, name)(x, x, x, 1)
        return x

    with pytest.raises(NotSimulatedError, match=name):
        nki.jit(kernel)(np.zeros((4, 8), dtype=np.float32))
