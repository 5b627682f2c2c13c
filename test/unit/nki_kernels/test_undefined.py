"""Undefined elements travel, and are an error where an address, a branch or an output reads them.

What an instruction passes on is checked against the arithmetic itself: with other values in the undefined places, only
elements that are marked undefined may come out differently, and of a marked one some filling must change the value.
"""

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from undefined_cases import CAUTIOUS, EXACT, F32, FILLS, I32, U32

from nki_kernels.interpreter import UndefinedReadError


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
