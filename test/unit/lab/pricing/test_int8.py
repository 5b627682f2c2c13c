"""The ways to multiply INT8 weights on a device: all compute the same, and the prices say what reading them does."""

from __future__ import annotations

import numpy as np
import pytest

from nki_kernels.interpreter import PriceList
from qwen36_lab.pricing.int8 import WAYS, arguments, price, stream

pytestmark = pytest.mark.interpreter


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, 8])
def test_every_way_computes_the_same(way: str, rows: int) -> None:
    x, _, scales, _ = args = arguments(way, rows, pieces=2)
    codes = arguments("INT8, cast by DMA", rows, pieces=2)[1].astype(np.float32)
    expected = x.astype(np.float32).T @ codes.reshape(len(x), len(scales), -1).sum(1)
    np.testing.assert_allclose(stream(*args), expected, rtol=1e-5, atol=1e-2)  # sums of 4,096 products of fp32


def test_a_cast_in_the_dma_saves_no_time_and_one_on_the_engines_does() -> None:
    prices, found = PriceList(), {}
    for way in WAYS:
        found[way] = price(way, 1, prices, pieces=8)
    bfloat16, fp8 = found["bfloat16"]["us"]["centre"], found["FP8"]["us"]["centre"]
    assert found["INT8, cast by DMA"]["us"]["centre"] == pytest.approx(bfloat16, rel=0.02)
    assert fp8 <= found["INT8, cast by the engines"]["us"]["centre"] <= 0.75 * bfloat16
    assert found["INT8 in groups of 128, cast by DMA"]["us"]["centre"] >= 2 * bfloat16
