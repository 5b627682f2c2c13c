"""The feed-forward block's forms: its activation compiled, and all of it as a kernel in its interpreter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from bank_cases import assert_close, normal
from compiled_forms import needs_numba

from qwen36_neuron.ops.mlp import swiglu

if TYPE_CHECKING:  # imported by the fixture: on a device it is AWS's own
    from qwen36_neuron.ops.nki_kernels import NkiKernels


@needs_numba
@pytest.mark.parametrize("shape", [(1, 1, 256), (3, 7, 100), (2, 200, 96), (1, 300, 256)])
def test_compiled_activation(shape: tuple[int, ...]) -> None:
    """On both sides of the size from which rows are shared out."""
    from qwen36_neuron.ops.numba import rows

    x, half = normal(*shape), shape[-1] // 2
    exact = F.silu(x[..., :half].double()) * x[..., half:].double()
    assert (rows.swiglu(x) - exact).abs().max() <= 2e-6
    assert (rows.swiglu(x) - swiglu(x)).abs().max() <= 2e-6


def test_kernel(nki: NkiKernels) -> None:
    """A sum over the cores, each of which has half of the intermediate channels."""
    from nki_kernels.fp8_mlp_torch import fp8_mlp_torch

    random_codes = torch.Generator().manual_seed(0)
    codes = tuple(
        torch.randint(0, 112, shape, dtype=torch.uint8, generator=random_codes)
        for shape in ((512, 256), (512, 256), (256, 512))
    )
    scales = (torch.full((256, 1), 1e-3), torch.full((256, 1), 2e-3), torch.full((1, 512), 3e-3))
    x = normal(5, 512).bfloat16()
    assert_close(nki.mlp(x, codes, scales), fp8_mlp_torch(x, *codes, *scales)[0], 5e-3)
