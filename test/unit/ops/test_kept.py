"""Constants that are kept on a CPU: a tracer, which has no values, leaves none behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from qwen36_neuron.ops.attention.rope import rotary_tables
from qwen36_neuron.ops.gated_delta_rule.triangular import unit_lower_inverse
from qwen36_neuron.ops.kept import may_keep
from qwen36_neuron.ops.norm import rms_norm
from qwen36_neuron.rope import RopeConfig

# Sizes that nothing else asks for, so that the tracer is the first to.
ROPE = RopeConfig(dim=22, theta=1234.5, mrope_section=(4, 4, 3))


def norm() -> torch.Tensor:
    return rms_norm(torch.full((2, 8), 3.0), torch.ones(8), 0.123)


def rope() -> torch.Tensor:
    return torch.cat(rotary_tables(torch.arange(6).view(1, 6), ROPE, torch.float32))


def inverse() -> torch.Tensor:
    return unit_lower_inverse(torch.full((1, 32, 32), 0.5, dtype=torch.float16))


@pytest.mark.parametrize("operation", [norm, rope, inverse])
def test_a_tracer_first(operation: Callable[[], torch.Tensor]) -> None:
    with FakeTensorMode():
        traced = operation()
    assert not may_keep(traced)
    found = operation()
    assert found.shape == traced.shape
    assert torch.isfinite(found).all()  # a tensor without values has none to look at
    assert torch.equal(found, operation())
