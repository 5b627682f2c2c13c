"""The norm kernels against fp64 and their twins, on rows of very different size."""

import pytest
import torch

from nki_kernels.gated_rms_norm import gated_rms_norm, qk_l2norm
from nki_kernels.gated_rms_norm_torch import gated_rms_norm_torch, qk_l2norm_torch

NAMES = ["kernel", "two", "twin"]
BARS = {torch.float32: 2e-5, torch.bfloat16: 1e-2}


def close(got, want, bar):
    """Every row by its own largest element."""
    error = (got.double() - want).abs().amax(-1)
    return bool((error <= bar * want.abs().amax(-1) + 1e-30).all())


def spread(tokens, heads):
    """Rows whose sizes span 1e-3 to 1e4, one of them zero."""
    x = torch.randn(tokens, heads, 128) * torch.logspace(-3, 4, tokens * heads).view(tokens, heads, 1)
    x[0, 0] = 0
    return x


@pytest.mark.parametrize("form", [gated_rms_norm, gated_rms_norm[2], gated_rms_norm_torch], ids=NAMES)
@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("tokens", [1, 128, 200])
def test_gated_rms_norm(form, dtype, tokens):
    x, gate, weight = spread(tokens, 6), 3 * torch.randn(tokens, 6, 128), torch.randn(1, 128)
    gate, weight = gate.to(dtype), weight.to(dtype)
    wide, open_gate = x.double(), gate.double()
    want = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    want = want * open_gate * torch.sigmoid(open_gate)
    got = form(x, gate, weight)
    assert got.dtype == dtype
    assert close(got, want, BARS[dtype])


@pytest.mark.parametrize("form", [qk_l2norm, qk_l2norm[2], qk_l2norm_torch], ids=NAMES)
@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize(("tokens", "scale"), [(1, 1.0), (200, 128**-0.5)])
def test_qk_l2norm(form, dtype, tokens, scale):
    x = spread(tokens, 4).to(dtype)
    wide = x.double()
    got = form(x, scale)
    assert got.dtype == dtype
    assert close(got, scale * wide / (wide.square().sum(-1, keepdim=True) + 1e-6).sqrt(), BARS[dtype])
