"""Every form of the causal convolution against its definition, whole and cut, and the definition against torch's own.

The compiled form is part of the DeltaNet block: see `test_gated_delta_rule`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from bank_cases import CHANNELS, TORCH, assert_banks_agree, assert_close, int32, make_bank, normal

from qwen36_neuron.ops.banks import Batch, Span
from qwen36_neuron.ops.causal_conv1d import causal_conv1d, causal_conv1d_cpu, causal_conv1d_step, naive_causal_conv1d

if TYPE_CHECKING:  # imported by the fixture: on a device it is AWS's own
    from qwen36_neuron.ops.nki_kernels import NkiKernels


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 64])
@pytest.mark.parametrize("kernel", [2, 4])
def test_every_form_equals_torch_with_a_carried_window(tokens: int, kernel: int) -> None:
    x, window, weight = torch.randn(2, tokens, 24), torch.randn(2, kernel - 1, 24), torch.randn(24, kernel)
    joined = torch.cat((window, x), dim=1)
    expected = F.silu(F.conv1d(joined.transpose(1, 2), weight.unsqueeze(1), groups=24)).transpose(1, 2)
    torch.testing.assert_close(naive_causal_conv1d(x, window, weight), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(causal_conv1d(x, window, weight), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(causal_conv1d_cpu(joined, weight), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 9])
def test_a_cut_carries_the_window(cut: int) -> None:
    joined, weight = torch.randn(1, 3 + 10, 8), torch.randn(8, 4)
    whole = causal_conv1d_cpu(joined, weight)
    parts = causal_conv1d_cpu(joined[:, : 3 + cut], weight), causal_conv1d_cpu(joined[:, cut:], weight)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernel", [2, 4])
def test_single_steps_equal_the_whole(kernel: int) -> None:
    x, window, weight = torch.randn(3, 6, 8), torch.randn(3, kernel - 1, 8), torch.randn(8, kernel)
    running, parts = window, []
    for t in range(6):
        y, running = causal_conv1d_step(x[:, t : t + 1], running, weight)
        parts.append(y)
    stepped = torch.cat(parts, dim=1)
    torch.testing.assert_close(stepped, causal_conv1d(x, window, weight), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stepped, naive_causal_conv1d(x, window, weight), rtol=1e-5, atol=1e-6)
    assert torch.equal(running, torch.cat((window, x), dim=1)[:, 6:])


def test_kernel_of_a_prompt(nki: NkiKernels, span: Span) -> None:
    x, weight, windows = normal(1, 256, CHANNELS), normal(CHANNELS, 4, seed=1), make_bank(3, CHANNELS)
    want, expected = TORCH.conv_prefill(x, weight, windows.clone(), span)
    got, actual = nki.conv_prefill(x, weight, windows.clone(), span)
    own = slice(int(span.first), int(span.end))
    assert_close(got[:, own], want[:, own], 5e-6)
    assert_banks_agree(actual, expected, windows, 0.0)
    before = windows[span.source].double().masked_fill(span.fresh, 0.0)
    assert_close(got[:, own], naive_causal_conv1d(x[:, own].double(), before, weight.double()), 5e-6)


def test_kernel_of_single_tokens(nki: NkiKernels, batch: Batch) -> None:
    x, weight, windows = normal(len(batch.lane), 1, CHANNELS), normal(CHANNELS, 4, seed=1), make_bank(3, CHANNELS)
    want, expected = TORCH.conv_decode(x, weight, windows.clone(), batch)
    got, actual = nki.conv_decode(x, weight, windows.clone(), batch)
    assert_close(got, want, 5e-6)
    assert_banks_agree(actual, expected, windows, 0.0)
    before = windows[batch.source].double().masked_fill(batch.fresh.view(-1, 1, 1), 0.0)
    assert_close(got, naive_causal_conv1d(x.double(), before, weight.double()), 5e-6)


def test_kernel_of_a_row_that_starts_reads_nothing_stale(nki: NkiKernels) -> None:
    """Whatever its lane holds, even what is not finite."""
    windows = make_bank(3, CHANNELS)
    windows[2] = torch.nan
    rows = Batch(int32(0) == 0, int32(2), int32(2), int32(0), int32(0))
    assert nki.conv_decode(normal(1, 1, CHANNELS), normal(CHANNELS, 4), windows, rows)[0].isfinite().all()
    assert windows[2].isfinite().all()
