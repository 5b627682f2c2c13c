"""The arithmetic that compiled code shares."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from numba import njit

from qwen36_neuron.ops.numba import scalar


def test_exp_is_right_to_the_last_bit_or_two() -> None:
    @njit
    def over(x: np.ndarray, out: np.ndarray) -> None:
        for i in range(x.shape[0]):
            out[i] = scalar.exp(x[i])

    x = np.concatenate((np.linspace(-87, 88, 200_001), np.linspace(-1, 1, 20_001))).astype(np.float32)
    out = np.empty_like(x)
    over(x, out)
    assert np.max(np.abs(out / np.exp(x.astype(np.float64)) - 1)) <= 2e-7
    ends = np.array([-1e30, -200.0, 0.0, 88.0], np.float32)
    found = np.empty_like(ends)
    over(ends, found)
    assert found[0] == found[1] > 0.0
    assert found[2] == 1.0
    assert np.isfinite(found[3])
