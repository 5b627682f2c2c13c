"""Every form of the norms: plain against transformers' own modules, compiled, and the kernel in its interpreter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from bank_cases import HEADS, TORCH, assert_close, normal
from compiled_forms import needs_numba
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5RMSNorm, Qwen3_5RMSNormGated

from qwen36_neuron.ops.norm import gated_rms_norm, rms_norm

if TYPE_CHECKING:  # imported by the fixture: on a device it is AWS's own
    from qwen36_neuron.ops.nki_kernels import NkiKernels

EPS = 1e-6


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


@needs_numba
@pytest.mark.parametrize("shape", [(1, 1, 256), (3, 7, 100), (2, 200, 96), (1, 300, 256)])
def test_compiled_form(shape: tuple[int, ...]) -> None:
    """On both sides of the size from which rows are shared out."""
    from qwen36_neuron.ops.numba import rows

    x, weight = normal(*shape), 1 + 0.2 * normal(shape[-1], seed=1)
    exact = x.double() * (x.double().square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()
    assert (rows.rms_norm(x, weight, EPS) - exact).abs().max() <= 2e-6
    assert (rows.rms_norm(x, weight, EPS) - rms_norm(x, weight, EPS)).abs().max() <= 2e-6


def test_kernel(nki: NkiKernels) -> None:
    x, gate, weight = normal(2, 70, HEADS, 128), normal(2, 70, HEADS, 128, seed=1), normal(128, seed=2)
    assert_close(nki.gated_norm(x, gate, weight, EPS), TORCH.gated_norm(x, gate, weight, EPS), 5e-6)
