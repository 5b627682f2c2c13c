"""Rotary embedding against transformers' own module, and its compiled form, which comes between a norm and a gate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bank_cases import normal
from compiled_forms import needs_numba
from transformers import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextRotaryEmbedding, apply_rotary_pos_emb

from qwen36_neuron.fields import Fields
from qwen36_neuron.ops.attention import MOST_POSITIONS, apply_rotary, rotary_tables, rotary_turns
from qwen36_neuron.rope import RopeConfig, read_rope

EPS = 1e-6
CARD = {"factor": 4.0, "original_max_position_embeddings": 262144}
"""What the published card of the 35B-A3B adds to the plain parameters."""
LAST = (1 << 20) - 1
SCALED: dict[str, dict[str, Any]] = {
    "plain": {},
    "card": CARD,
    "betas": {**CARD, "beta_fast": 64, "beta_slow": 2},
    "attention": {**CARD, "attention_factor": 0.75},
    "mscale": {**CARD, "mscale": 0.707, "mscale_all_dim": 1.3},
    "untruncated": {**CARD, "truncate": False},
    "short": {"factor": 64, "original_max_position_embeddings": 16384},
    "one": {"factor": 1.0, "original_max_position_embeddings": 512},
}


def parameters(scaled: dict[str, Any]) -> dict[str, Any]:
    return {
        "rope_type": "yarn" if scaled else "default",
        "rope_theta": 10000000,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
        **scaled,
    }


def ours(scaled: dict[str, Any]) -> RopeConfig:
    return read_rope(Fields({"rope_parameters": parameters(scaled)}), 262144)


def positions(axes: int) -> torch.Tensor:
    """Both ends, both sides of powers of two, and what lies anywhere between."""
    edges = [0, 1, 63, 64, 2047, 2048, 2049, 262143, 262144, 262145, 524287, 999_999, LAST - 1, LAST]
    random = torch.randint(0, LAST, (50,), generator=torch.Generator().manual_seed(axes)).tolist()
    text = torch.tensor(edges + random).view(2, 32)
    return text if axes == 1 else torch.stack((text, text.roll(1, 1), text.roll(5, 1)))


def transformers_tables(scaled: dict[str, Any], where: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """cos and sin [batch, tokens, dim] of transformers' own module."""
    config = Qwen3_5TextConfig(max_position_embeddings=262144, rope_parameters=parameters(scaled))
    three = where if where.dim() == 3 else where.expand(3, -1, -1)
    return list(Qwen3_5TextRotaryEmbedding(config)(torch.empty(0, dtype=dtype), three))


@pytest.fixture
def in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' code as it is, with fp64 in the place of the fp32 that it asks for."""
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("axes", [1, 3], ids=["text", "image"])
@pytest.mark.parametrize("name", SCALED)
def test_tables_are_those_of_transformers_up_to_a_million_positions(name: str, axes: int) -> None:
    """In fp64 they are the same to rounding; in a graph, which has no fp64, within 1e-6."""
    where, rope = positions(axes), ours(SCALED[name])
    expected = transformers_tables(SCALED[name], where, torch.float64)
    exact = rotary_tables(where, rope, torch.float64)
    graph = rotary_tables(where.to(torch.int32), rope, torch.float64, rotary_turns(rope))
    for found, held, other in zip(exact, graph, expected, strict=True):
        assert other.dtype == torch.float64
        assert (found[:, :, 0] - other[..., :32]).abs().max() <= 1e-9
        assert (held[:, :, 0] - other[..., :32]).abs().max() <= EPS


@pytest.mark.parametrize("name", ["plain", "card"])
def test_fp32_angles_are_wrong_by_far_more(name: str) -> None:
    """What transformers does on a device: at a million positions it is off by 1e-2 and more, at 512 by 1e-4 at most."""
    for where, low, high in ((torch.arange(512)[None], 0, 1e-4), (LAST - torch.arange(512)[None], 1e-2, 1e-1)):
        theirs = transformers_tables(SCALED[name], where, torch.float32)
        exact = rotary_tables(where, ours(SCALED[name]), torch.float64)
        worst = max(float((a[:, :, 0] - b[..., :32]).abs().max()) for a, b in zip(exact, theirs, strict=True))
        assert low <= worst <= high


def test_a_graphs_tables_hold_at_every_position() -> None:
    rope = ours(CARD)
    turns = rotary_turns(rope)
    for first in (0, 262144 - 4096, LAST + 1 - 8192, MOST_POSITIONS - 8192):
        where = torch.arange(first, first + 8192)[None]
        exact = rotary_tables(where, rope, torch.float64)
        for found, other in zip(rotary_tables(where.int(), rope, torch.float32, turns), exact, strict=True):
            assert (found - other).abs().max() <= EPS


@pytest.mark.parametrize("axes", [1, 3], ids=["text", "image"])
def test_rotation_equals_transformers(axes: int) -> None:
    where = positions(axes)[..., :9] % 512
    q, k = torch.randn(2, 9, 4, 256), torch.randn(2, 9, 2, 256)
    cos, sin = transformers_tables({}, where, torch.float32)
    expected = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    tables = rotary_tables(where, ours({}), torch.float32)
    for actual, other in zip((apply_rotary(q, *tables), apply_rotary(k, *tables)), expected, strict=True):
        # Their angles are fp32, of up to 512 radians.
        torch.testing.assert_close(actual, other.transpose(1, 2), rtol=0, atol=3e-4)


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
