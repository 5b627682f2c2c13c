"""The FP8 MLP against fp64 on decoded weights, and its twin's decoding against every code."""

import ml_dtypes
import numpy as np
import pytest
import torch

from nki_kernels.fp8_mlp import fp8_mlp
from nki_kernels.fp8_mlp_torch import decode_e4m3, fp8_mlp_torch


def test_every_code():
    codes = np.arange(256, dtype=np.uint8)
    want = codes.view(ml_dtypes.float8_e4m3).astype(np.float32)
    np.testing.assert_array_equal(decode_e4m3(torch.from_numpy(codes)).numpy(), want)


@pytest.mark.parametrize("form", [fp8_mlp, fp8_mlp[2], fp8_mlp_torch], ids=["kernel", "two cores", "twin"])
@pytest.mark.parametrize("tokens", [1, 8, 129, 512])
def test_against_fp64(form, tokens):
    rng = np.random.default_rng(tokens)
    hidden, inner = 512, 512

    def weight(rows, columns):
        values = rng.uniform(-240, 240, (rows, columns)).astype(ml_dtypes.float8_e4m3)
        return torch.from_numpy(values.view(np.uint8)), values.astype(np.float64)

    x = torch.from_numpy(rng.standard_normal((tokens, hidden)).astype(np.float32)).to(torch.bfloat16)
    (gate, gate64), (up, up64), (down, down64) = weight(hidden, inner), weight(hidden, inner), weight(inner, hidden)
    scales = [torch.from_numpy(rng.uniform(1e-4, 1e-3, shape).astype(np.float32))
              for shape in ((inner, 1), (inner, 1), (1, hidden))]  # fmt: skip
    wide = x.double().numpy()
    opened = (wide @ gate64) * scales[0].double().numpy().T
    product = opened / (1 + np.exp(-opened)) * ((wide @ up64) * scales[1].double().numpy().T)
    want = (product @ down64) * scales[2].double().numpy()
    got = form(x, gate, up, down, *scales).double().sum(0).numpy()
    assert np.abs(got - want).max() <= 1e-2 * np.abs(want).max()
