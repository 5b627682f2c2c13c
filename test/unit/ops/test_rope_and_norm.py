"""Rotary embedding and norms against transformers' own modules."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    Qwen3_5RMSNorm,
    Qwen3_5RMSNormGated,
    Qwen3_5TextRotaryEmbedding,
    apply_rotary_pos_emb,
)

from qwen36_neuron.config import RopeConfig
from qwen36_neuron.ops.attention import apply_rotary, rotary_tables
from qwen36_neuron.ops.norm import gated_rms_norm, rms_norm

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_equal_transformers(dtype: torch.dtype) -> None:
    x, gate = torch.randn(3, 5, 128, dtype=dtype), torch.randn(3, 5, 128, dtype=dtype)
    plain, gated = Qwen3_5RMSNorm(128, eps=1e-6).to(dtype), Qwen3_5RMSNormGated(128, eps=1e-6).to(dtype)
    with torch.no_grad():
        plain.weight.normal_()
        gated.weight.normal_()
        tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 8e-3, "atol": 1e-3}
        ours = rms_norm(x, 1 + plain.weight.float(), 1e-6)
        torch.testing.assert_close(ours, plain(x), **tolerance)
        ours = gated_rms_norm(x.float(), gate, gated.weight, 1e-6)
        torch.testing.assert_close(ours, gated(x, gate), **tolerance)


def test_epsilon_does_not_depend_on_the_default_type() -> None:
    x, eps, default = torch.full((1, 4), 1e-3), 1.0234e-6, torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = rms_norm(x, torch.ones(4, dtype=torch.float32), eps)
    finally:
        torch.set_default_dtype(default)
    torch.testing.assert_close(found.double(), x.double() / (1e-6 + eps) ** 0.5, rtol=1e-6, atol=0)
