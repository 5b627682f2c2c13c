"""Fused norms, activations, projections and one-token attention against their plain forms in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("numba")

from numba import njit

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.ops.attention import apply_rotary
from qwen36_neuron.ops.attention.numba_step import attention_step
from qwen36_neuron.ops.mlp import swiglu as plain_swiglu
from qwen36_neuron.ops.norm import rms_norm as plain_rms_norm
from qwen36_neuron.ops.numba import scalar
from qwen36_neuron.ops.numba.projections import Matrix, Norm, norm_project, norm_swiglu, project_add
from qwen36_neuron.ops.numba.rows import gate_heads, norm_and_rotate, rms_norm, swiglu

EPS = 1e-6


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exact_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()


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


@pytest.mark.parametrize("shape", [(1, 1, 256), (3, 7, 100), (2, 200, 96), (1, 300, 256)])
def test_rms_norm_and_swiglu(shape: tuple[int, ...]) -> None:
    """On both sides of the size from which rows are shared out."""
    x, weight = normal(*shape), 1 + 0.2 * normal(shape[-1], seed=1)
    assert (rms_norm(x, weight, EPS) - exact_norm(x, weight)).abs().max() <= 2e-6
    assert (rms_norm(x, weight, EPS) - plain_rms_norm(x, weight, EPS)).abs().max() <= 2e-6
    half = shape[-1] // 2
    exact = F.silu(x[..., :half].double()) * x[..., half:].double()
    assert (swiglu(x) - exact).abs().max() <= 2e-6
    assert (swiglu(x) - plain_swiglu(x)).abs().max() <= 2e-6


def test_norm_and_rotate_and_the_gate() -> None:
    batch, tokens, heads, size = 2, 5, 3, 96
    x, weight = normal(batch, tokens, 2 * heads * size), 1 + 0.2 * normal(size, seed=1)
    angles = normal(batch, tokens, 1, 16, seed=2)
    rotary = angles.cos(), angles.sin()
    own = x[..., : heads * size].unflatten(2, (heads, size))
    expected = apply_rotary(exact_norm(own, weight), *(table.double() for table in rotary))
    assert (norm_and_rotate(x, weight, EPS, rotary) - expected).abs().max() <= 4e-6
    mixed = normal(batch, tokens, heads * size, seed=3)
    gated = mixed.double() * torch.sigmoid(x[..., heads * size :].double())
    assert (gate_heads(mixed, x) - gated).abs().max() <= 2e-6


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 17])
@pytest.mark.parametrize(("inputs", "outputs"), [(256, 2060), (96, 31), (768, 256), (33, 2), (64, 1)])
def test_projections_of_any_number_of_rows(rows: int, inputs: int, outputs: int) -> None:
    """Rows on both sides of what is done here, odd outputs, a last task with less to do."""
    x, weight = normal(rows, inputs), normal(outputs, inputs, seed=1) / inputs**0.5
    factors, before = 1 + 0.2 * normal(inputs, seed=2), normal(rows, outputs, seed=3)
    norm = Norm(factors.numpy(), scalar.f32(EPS))
    normed, out = Matrix.empty(rows, inputs), Matrix.empty(rows, outputs)
    norm_project(Matrix.of(x), norm, Matrix.of(weight), normed, out)
    exact = exact_norm(x, factors) @ weight.double().t()
    assert (out.tensor - exact).abs().max() <= 4e-6
    summed = Matrix.of(before.clone())
    project_add(Matrix.of(x), Matrix.of(weight), summed)
    assert (summed.tensor - (before.double() + x.double() @ weight.double().t())).abs().max() <= 4e-6
    both = Matrix.of(torch.cat((weight, weight.flip(0) * 0.5)))
    norm_swiglu(Matrix.of(x), norm, both, normed, out)
    assert (out.tensor - F.silu(exact) * exact.flip(1) * 0.5).abs().max() <= 8e-6


@pytest.mark.parametrize(("query_heads", "kv_heads", "size"), [(4, 2, 256), (6, 1, 64), (2, 2, 40)])
def test_attention_of_one_token_over_scattered_blocks(query_heads: int, kv_heads: int, size: int) -> None:
    """Lengths at a block's edge and one either side; other sequences' blocks and stale slots are not looked at."""
    ends, blocks = [1, 63, 64, 65, 200], 24
    batch, half = len(ends), 16
    qgkv = normal(batch, (2 * query_heads + 2 * kv_heads) * size)
    weights = 1 + 0.2 * normal(2, size, seed=1)
    angles = normal(batch, half, seed=2)
    cos, sin = angles.cos(), angles.sin()
    order = torch.randperm(blocks - 1, generator=torch.Generator().manual_seed(3)) + 1
    tables, caches = np.zeros((batch, 4), np.int32), torch.full((2, blocks * BLOCK_SIZE, kv_heads, size), torch.nan)
    past = normal(2, batch, 256, kv_heads, size, seed=4)
    for row, end in enumerate(ends):
        for index in range(-(-end // BLOCK_SIZE)):
            tables[row, index] = order[4 * row + index]
            first, count = int(tables[row, index]) * BLOCK_SIZE, min(BLOCK_SIZE, end - 1 - index * BLOCK_SIZE)
            at = slice(index * BLOCK_SIZE, index * BLOCK_SIZE + count)
            caches[:, first : first + count] = past[:, row, at]
    out = torch.empty(batch, query_heads * size)
    attention_step(
        qgkv.numpy(),
        *weights.numpy(),
        scalar.f32(EPS),
        cos.numpy(),
        sin.numpy(),
        *caches.numpy(),
        tables,
        np.array(ends),
        out.numpy(),
    )
    parts = [heads * size for heads in (query_heads, query_heads, kv_heads, kv_heads)]
    for row, end in enumerate(ends):
        q, gate, k, v = (x.double().unflatten(0, (-1, size)) for x in qgkv[row].split(parts))
        tables_ = cos[row].double().view(1, 1, 1, -1), sin[row].double().view(1, 1, 1, -1)
        q, k = (
            apply_rotary(exact_norm(x, weight).view(1, 1, -1, size), *tables_)[0, 0]
            for x, weight in zip((q, k), weights, strict=True)
        )
        keys = torch.cat((past[0, row, : end - 1].double(), k.unsqueeze(0))).repeat_interleave(
            query_heads // kv_heads, dim=1
        )
        values = torch.cat((past[1, row, : end - 1].double(), v.unsqueeze(0))).repeat_interleave(
            query_heads // kv_heads, dim=1
        )
        share = (torch.einsum("hd,thd->ht", q, keys) * size**-0.5).softmax(-1)
        expected = torch.einsum("ht,thd->hd", share, values) * torch.sigmoid(gate)
        assert (out[row] - expected.flatten()).abs().max() <= 4e-6
        slot = int(tables[row, (end - 1) // BLOCK_SIZE]) * BLOCK_SIZE + (end - 1) % BLOCK_SIZE
        assert (caches[0, slot] - k).abs().max() <= 4e-6
        assert torch.equal(caches[1, slot], v.float())
