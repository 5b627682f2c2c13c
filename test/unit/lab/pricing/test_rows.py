"""The kernels rebuilt for the validation compute what they claim, and the table says what it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nki_kernels.interpreter  # noqa: F401  provides nki
from qwen36_lab.pricing import deltanet, products
from qwen36_lab.pricing.rows import Row, Times, deltanet_inputs, phases, public, rounded

pytestmark = pytest.mark.interpreter

RANDOM = np.random.default_rng(0)


def normal(*shape: int, scale: float = 0.3) -> np.ndarray:
    return (RANDOM.standard_normal(shape) * scale).astype(np.float32)


def norm(x: np.ndarray, weight: np.ndarray | float = 1.0) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weight


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def test_products() -> None:
    a, b = normal(128, 128), normal(128, 128)
    assert np.allclose(products.product_128(a, b), a @ b, atol=1e-4)
    x, z, g, w = normal(256, 256), normal(256, 256), normal(256), normal(256, 512)
    assert np.allclose(products.add_norm_project(x, z, g, w), norm(x + z, g) @ w, atol=1e-4)
    z, g = normal(256, 512), normal(512)
    assert np.allclose(products.project_add_norm(x, z, g, w), norm(x @ w + z, g), atol=1e-4)


def test_swiglu() -> None:
    x, gate, up, down = normal(1024, 512), normal(512, 384), normal(512, 384), normal(384, 512)
    want = (silu(x @ gate) * (x @ up)) @ down
    assert np.allclose(products.swiglu(x, gate, up, down), want, atol=1e-3 * np.abs(want).max())


def deltanet_by_hand(
    hidden, gamma, weights, conv_state, conv_weight, gates, state, z_gamma, out_weight
) -> tuple[np.ndarray, ...]:
    """The same half-layer in float64, a head after the other."""
    heads, keys, taps = 4, 2, 4
    x = norm(hidden.astype(np.float64)) * np.broadcast_to(gamma, (128, 16)).reshape(-1)
    out, states, windows = np.zeros((2, 2048)), [], []
    for core in range(2):
        at, parts = 0, []
        for columns in deltanet.RUNS:
            block = weights[core, :, at : at + 16 * columns].astype(np.float64).reshape(2048, columns)
            parts.append(x @ block)
            at += 16 * columns
        qkv = np.concatenate(parts[:3], axis=1)
        past = conv_state[core].reshape(8 * 128, 3).T
        window, filters = np.concatenate([past, qkv]), conv_weight[core].reshape(8 * 128, taps)
        mixed = silu(np.stack([(window[t : t + taps] * filters.T).sum(0) for t in range(2)])).reshape(2, 8, 128)
        windows.append(np.stack([window[t + 1 : t + taps].T.reshape(8, 3 * 128) for t in range(2)]))
        q, k, v = mixed[:, :keys], mixed[:, keys : 2 * keys], mixed[:, 2 * keys :]
        q = q / np.sqrt((q * q).sum(-1, keepdims=True)) * 128**-0.5
        k = k / np.sqrt((k * k).sum(-1, keepdims=True))
        rates, biases = gates[core].reshape(2, 2, heads)
        a = parts[3][:, core * heads :][:, :heads]
        b = parts[3][:, 8 + core * heads :][:, :heads]
        decay, beta = np.exp(-rates * np.logaddexp(0, a + biases)), 1 / (1 + np.exp(-b))
        s, rows, kept = state[core].astype(np.float64).reshape(128, heads, 128), np.zeros((2, heads, 128)), []
        s = s.copy()
        for t in range(2):
            for h in range(heads):
                key, query = k[t, h // 2], q[t, h // 2]
                s[:, h] *= decay[t, h]
                s[:, h] += np.outer(key * beta[t, h], v[t, h] - key @ s[:, h])
                rows[t, h] = query @ s[:, h]
            kept.append(s.reshape(128, 512).copy())
        states.append(kept)
        gated = rows / np.sqrt((rows * rows).mean(-1, keepdims=True)) * z_gamma.reshape(heads, 128)
        done = gated.reshape(2, 512) * silu(parts[4])
        out += done @ out_weight[core].astype(np.float64).reshape(128, heads, 2048).transpose(1, 0, 2).reshape(
            512, 2048
        )
    return out, np.array(states), np.array(windows)


def test_the_half_layer_is_the_delta_rule() -> None:
    args = deltanet_inputs()
    got = deltanet.deltanet_half[2](*args)
    for mine, want in zip(got, deltanet_by_hand(*args), strict=True):
        assert (
            np.abs(mine.astype(np.float64) - want).max() <= 0.02 * np.abs(want).max()
        )  # rounded to bfloat16 on the way


def test_phases_are_in_order_and_add_up() -> None:
    found = phases()
    assert list(found) == list(
        deltanet_phases := ["load and norm", "in_proj", "conv and l2norm", "recurrence", "o_proj"]
    )
    assert all(modelled > 0 for _, modelled in found.values())
    assert len(deltanet_phases) == len(deltanet.marks)


def test_a_row_says_how_far_off_it_is() -> None:
    row = Row("x", (18, 20), "s", "h", Times(20.94, 15.2, 14.4, 22.0))
    assert row.error(row.times.program) == pytest.approx(0.102, abs=1e-3)
    assert row.error(row.times.reordered) == pytest.approx(-0.2)
    assert row.between
    assert not Row("x", (23, 24), "s", "h", row.times).between
    assert rounded(row).times.program == 20.9


def test_a_checkout_without_the_kernels_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"v12e\.py"):
        list(public(tmp_path))
