"""The plain chunk kernel against its twin and the fp64 recurrence."""

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
import torch

from nki_kernels.delta_rule_masks import (
    EARLY,
    FADE,
    GROW,
    LATE,
    LEFT,
    LOCAL,
    TOTAL,
    make_constants,
    make_sums,
)
from nki_kernels.delta_rule_tiles import HALF, LEVELS, TILE, identity, product, sbuf
from nki_kernels.gated_delta_rule_chunk import gated_delta_rule_chunk
from nki_kernels.gated_delta_rule_chunk_torch import gated_delta_rule_chunk_torch
from qwen36_lab.pricing.delta_rule_cases import make_case, recurrence, worst

HOSTILE = [
    (0.0, None, None), (0.5, 0.9, -1e-2), (0.9, 0.9, -1e-4), (0.99, 0.99, -1e-4), (1.0, 0.5, -1e-4), (1.0, 0.99, -1.0),
    (0.9, 0.9, -8.0),
]  # fmt: skip


def one_head(case):
    return case.q[:, 0], case.k[:, 0], case.v[:, 0], case.g, case.beta, case.state[0]


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 128])
@pytest.mark.parametrize(("correlation", "beta", "gate"), HOSTILE)
def test_kernel_and_twin_are_exact(tokens, correlation, beta, gate):
    case = make_case(tokens, correlation=correlation, beta=beta, gate=gate)
    want, states = recurrence(case)
    for form in (gated_delta_rule_chunk, gated_delta_rule_chunk_torch):
        o, state = form(*one_head(case))
        assert worst(o, want[:, 0]) <= 2e-5
        assert worst(state, states[-1, 0]) <= 2e-5


def test_steep_gates_then_shallow_ones_keep_their_digits():
    """Prefix sums reach -512, where fp32 no longer resolves the shallow gates after them: sums over ranges do."""
    case = make_case(128, correlation=0.9, beta=0.9, gate=-8.0)
    case.g[64:] = -1e-4
    want, states = recurrence(case)
    o, state = gated_delta_rule_chunk(*one_head(case))
    assert worst(o, want[:, 0]) <= 2e-5
    assert worst(state, states[-1, 0]) <= 2e-5


@nki.jit
def tables():
    """The levels' masks and the sums' tables, side by side."""
    out = nl.ndarray((TILE, (LEVELS + 2 * 7) * HALF), dtype=nl.float32, buffer=nl.shared_hbm)
    const = make_constants(nl.float32)
    make_sums(const)
    nisa.dma_copy(dst=out[:, 0 : LEVELS * HALF], src=const.levels.reshape((TILE, LEVELS * HALF)))
    nisa.dma_copy(dst=out[:, LEVELS * HALF :], src=const.sums.reshape((TILE, 7 * TILE)))
    return out


def test_the_masks_are_the_recursion():
    """One level after the other from the inverse of blocks of 2 gives that of 64; the other head's columns are zero."""
    rng = np.random.default_rng(0)
    a, eye = np.tril(rng.standard_normal((HALF, HALF)), -1), np.eye(HALF)
    levels = np.asarray(tables())[:, : LEVELS * HALF].reshape(2, HALF, LEVELS, 2, HALF // 2)
    for head in range(2):
        assert (levels[head, :, :, 1 - head] == 0).all()
        t = eye - a * (np.subtract.outer(np.arange(HALF), np.arange(HALF)) == 1) * (np.arange(HALF) % 2 == 0)
        for level in range(LEVELS):
            p = eye.copy().reshape(HALF, -1, 2, 2 << level)
            p[:, :, 0] = levels[head, :, level, head].reshape(HALF, -1, 2 << level)
            p = p.reshape(HALF, HALF)
            t = t @ np.where(p < 0, -(eye + a) @ t, p)
        np.testing.assert_allclose(t @ (eye + a), eye, atol=1e-6 * np.abs(t).max())


def test_the_tables_of_sums():
    sums = np.asarray(tables())[:, LEVELS * HALF :].reshape(TILE, 7, TILE).transpose(1, 0, 2)
    k, i = np.arange(TILE)[:, None], np.arange(TILE)[None, :]
    same = k // HALF == i // HALF
    wanted = {
        GROW: k <= i, LOCAL: (k <= i) & same, FADE: (k > i) & same, LEFT: k > i, EARLY: (k < HALF) & (i >= 0),
        LATE: (k >= HALF) & (i >= 0), TOTAL: (k >= 0) & (i >= 0),
    }  # fmt: skip
    for kind, table in wanted.items():
        assert (sums[kind] == table).all()


@nki.jit
def doubling_inverse(a):
    """(I + A)^-1 by the Neumann series squared up: (I - A)(I + A^2)(I + A^4) ... (I + A^64). For comparison only."""
    out = nl.ndarray((TILE, TILE), dtype=nl.float32, buffer=nl.shared_hbm)
    power, power_t, t_t = (sbuf(nl.float32, (TILE, TILE)) for _ in range(3))
    eye = identity(nl.float32)
    nisa.dma_copy(dst=power, src=a)
    turned = nl.ndarray((TILE, TILE), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_transpose(dst=turned, data=power)
    nisa.tensor_copy(dst=power_t, src=turned)
    nisa.tensor_tensor(dst=t_t, data1=eye, data2=power_t, op=nl.subtract)
    for _ in range(6):
        square, square_t = product(power_t, power), product(power, power_t)
        nisa.tensor_copy(dst=power, src=square)
        nisa.tensor_copy(dst=power_t, src=square_t)
        nisa.tensor_tensor(dst=t_t, data1=t_t, data2=product(power, t_t), op=nl.add)
    nisa.dma_copy(dst=out, src=t_t)
    return out


def test_doubling_fails_where_the_recursion_does_not():
    """The same correlated keys on which the kernel above stays exact break the series by orders of magnitude."""
    case = make_case(128, correlation=0.99, beta=0.9, gate=-1e-3)
    k = case.k[:, 0].double()
    k = k / k.norm(dim=1, keepdim=True)
    decay = torch.exp(case.g.double().cumsum(0) - case.g.double().cumsum(0).T).tril(-1)
    a = (0.9 * (k @ k.T) * decay).numpy()
    want = np.linalg.inv(np.eye(TILE) + a)
    got = doubling_inverse(a.astype(np.float32)).T.astype(np.float64)
    assert not np.abs(got - want).max() / np.abs(want).max() < 1.0
