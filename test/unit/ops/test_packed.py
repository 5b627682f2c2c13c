"""Plain operations on weights in the order of the fused kernels, against the weights that were packed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nki_kernels.decode_mlp_torch import pack
from nki_kernels.decode_projection_torch import pack_columns, pack_rows
from qwen36_neuron.checkpoint.fp8 import quantise_channels
from qwen36_neuron.ops.fused import packed

BAR = 1e-2
"""Of the largest: products, activations and results are rounded to bfloat16, three times 2^-9, of sums of many."""


def weight(rows: int, columns: int, codes: bool) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """A matrix as it is stored, its scales, and its values."""
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns)) / columns**0.5
    if not codes:
        return values.bfloat16(), None, values.bfloat16().float()
    payload, scale = quantise_channels(values)
    return payload.view(torch.uint8), scale.view(-1), payload.float() * scale


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.float() - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("cores", [1, 2])
def test_projections(cores: int, codes: bool) -> None:
    x = torch.randn(2, 9, 384, generator=torch.Generator().manual_seed(0)).bfloat16()
    for pack_it, run in ((pack_columns, packed.columns), (pack_rows, packed.rows)):
        stored, scale, values = weight(260, 384, codes)
        got = run(x, pack_it(stored, cores), None if scale is None else scale.view(cores, -1))
        assert got.dtype is torch.bfloat16
        assert error(got, x.float() @ values.t()) <= BAR


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("blocks", [1, 3, 6, 9, 17])
def test_feed_forward_blocks(blocks: int, cores: int, codes: bool) -> None:
    """Blocks of 128 channels a core that make one part, two, and parts of two chunks of several blocks."""
    x = torch.randn(1, 5, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    inner = 128 * blocks * cores
    (gate, of_gate, g), (up, of_up, u) = weight(inner, 256, codes), weight(inner, 256, codes)
    up, u = up.flip(0), u.flip(0)
    of_up = None if of_up is None else of_up.flip(0)
    down, of_down, d = weight(256, inner, codes)
    scales = (of_gate, of_up, of_down) if of_gate is not None and of_up is not None and of_down is not None else None
    got = packed.swiglu(x, pack(gate, up, down, cores, scales))
    wide = x.float()
    assert error(got, (F.silu(wide @ g.t()) * (wide @ u.t())) @ d.t()) <= BAR
