"""Rotary embedding against transformers' own module, and its compiled form, which comes between a norm and a gate."""

from __future__ import annotations

import pytest
import torch
from bank_cases import normal
from compiled_forms import needs_numba
from transformers import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextRotaryEmbedding, apply_rotary_pos_emb

from qwen36_neuron.config import RopeConfig
from qwen36_neuron.ops.attention import apply_rotary, rotary_tables

EPS = 1e-6
ROPE = RopeConfig(theta=1e7, dim=64, mrope_section=(11, 11, 10))


def positions(axes: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    if axes == 1:
        return torch.arange(2 * 9).view(2, 9) * 997
    return torch.randint(0, 5000, (3, 2, 9), generator=random)


@pytest.mark.parametrize("axes", [1, 3], ids=["text", "image"])
def test_rotary_equals_transformers(axes: int) -> None:
    config = Qwen3_5TextConfig(
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
            "mrope_section": [11, 11, 10],
            "mrope_interleaved": True,
        }
    )
    where = positions(axes)
    q, k = torch.randn(2, 9, 4, 256), torch.randn(2, 9, 2, 256)
    cos, sin = Qwen3_5TextRotaryEmbedding(config)(q, where if axes == 3 else where.expand(3, -1, -1))
    expected = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    tables = rotary_tables(where, ROPE, torch.float32)
    for actual, other in zip((apply_rotary(q, *tables), apply_rotary(k, *tables)), expected, strict=True):
        # fp32 cosines of angles of up to 1e4 radians differ by their argument reduction alone
        torch.testing.assert_close(actual, other.transpose(1, 2), rtol=0, atol=1e-5)


@needs_numba
def test_compiled_norm_and_rotation_and_the_gate() -> None:
    from qwen36_neuron.ops.numba.rows import gate_heads, norm_and_rotate

    batch, tokens, heads, size = 2, 5, 3, 96
    x, weight = normal(batch, tokens, 2 * heads * size), 1 + 0.2 * normal(size, seed=1)
    angles = normal(batch, tokens, 1, 16, seed=2)
    rotary = angles.cos(), angles.sin()
    own = x[..., : heads * size].unflatten(2, (heads, size)).double()
    normed = own * (own.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()
    expected = apply_rotary(normed, *(table.double() for table in rotary))
    assert (norm_and_rotate(x, weight, EPS, rotary) - expected).abs().max() <= 4e-6
    mixed = normal(batch, tokens, heads * size, seed=3)
    gated = mixed.double() * torch.sigmoid(x[..., heads * size :].double())
    assert (gate_heads(mixed, x) - gated).abs().max() <= 2e-6
