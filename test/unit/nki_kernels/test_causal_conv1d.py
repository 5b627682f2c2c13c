"""The convolution kernels against a direct fp64 sum and their twins."""

import numpy as np
import pytest
import torch

from nki_kernels import examples
from nki_kernels.causal_conv1d import causal_conv1d, causal_conv1d_step
from nki_kernels.causal_conv1d_torch import causal_conv1d_step_torch, causal_conv1d_torch
from nki_kernels.interpreter import profile

BARS = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def inputs(tokens, channels, dtype):
    rng = torch.Generator().manual_seed(tokens)
    return (
        torch.randn(tokens, channels, generator=rng).to(dtype),
        torch.randn(3, channels, generator=rng).to(dtype),
        torch.randn(channels, 4, generator=rng).to(dtype),
    )


def direct(joined, weight):
    """[3 + n, C] to [n, C], token by token, fp64."""
    joined, weight = joined.double().numpy(), weight.double().numpy()
    y = np.stack([(joined[t : t + 4].T * weight).sum(1) for t in range(joined.shape[0] - 3)])
    return y / (1 + np.exp(-y))


def close(got, want, bar):
    return np.abs(got.double().numpy() - want).max() <= bar * np.abs(want).max()


@pytest.mark.parametrize("form", [causal_conv1d, causal_conv1d[2], causal_conv1d_torch], ids=["kernel", "two", "twin"])
@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize(("tokens", "first", "last"), [
    (1, 0, 1), (2, 0, 2), (64, 0, 63), (128, 0, 128), (130, 0, 130), (300, 124, 126), (300, 61, 270), (64, 5, 5),
])  # fmt: skip
def test_prompt(form, dtype, tokens, first, last):
    x, window, weight = inputs(tokens, 256, dtype)
    ends = sorted({first, min(first + 1, last), min(first + 64, last), last})
    y, windows = form(
        x, window, weight, torch.tensor([[first, last]], dtype=torch.int32), torch.tensor([ends], dtype=torch.int32)
    )
    joined = torch.cat((window, x[first:last]))
    if last > first:
        assert close(y[first:last], direct(joined, weight), BARS[dtype])
    for n, end in enumerate(ends):
        assert torch.equal(windows[n], joined[end - first : end - first + 3])


@pytest.mark.parametrize(
    "form", [causal_conv1d_step, causal_conv1d_step[2], causal_conv1d_step_torch], ids=["kernel", "two", "twin"]
)
@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize(("batch", "steps"), [(1, 1), (3, 1), (35, 1), (3, 4)])
def test_step(form, dtype, batch, steps):
    x, _, weight = inputs(batch * steps, 256, dtype)
    x = x.view(batch, steps, 256)
    lanes = torch.randn(2 + batch * (1 + steps), 3, 256).to(dtype)
    before = lanes.clone()
    read = torch.arange(1, 1 + batch, dtype=torch.int32).unsqueeze(0)
    write = read if steps == 1 else torch.arange(batch + 1, batch + 1 + batch * steps, dtype=torch.int32).unsqueeze(0)
    y, returned = form(x, lanes, weight, read, write)
    for b in range(batch):
        joined = torch.cat((before[1 + b], x[b]))
        assert close(y[b], direct(joined, weight), BARS[dtype])
        for m in range(steps):
            assert torch.equal(lanes[write[0, b * steps + m]], joined[m + 1 : m + 4])
    assert torch.equal(returned, lanes)
    assert torch.equal(lanes[0], before[0])
    assert torch.equal(lanes[-1], before[-1])


@pytest.mark.parametrize(
    "form", [causal_conv1d_step, causal_conv1d_step[2], causal_conv1d_step_torch], ids=["kernel", "two", "twin"]
)
def test_a_window_goes_to_two_lanes(form):
    x, _, weight = inputs(2, 256, torch.float32)
    lanes = torch.randn(5, 3, 256)
    before = lanes.clone()
    read, write = torch.tensor([[1, 2]], dtype=torch.int32), torch.tensor([[1, 5, 2, 4]], dtype=torch.int32)
    form(x.unsqueeze(1), lanes, weight, read, write)
    assert torch.equal(lanes[1], torch.cat((before[1, 1:], x[:1])))
    assert torch.equal(lanes[2], torch.cat((before[2, 1:], x[1:])))
    assert torch.equal(lanes[4], lanes[2])
    assert torch.equal(lanes[[0, 3]], before[[0, 3]])


def test_a_step_continues_a_prompt():
    x, window, weight = inputs(70, 128, torch.float32)
    valid, ends = torch.tensor([[0, 69]], dtype=torch.int32), torch.tensor([[69]], dtype=torch.int32)
    _, windows = causal_conv1d(x[:69].contiguous(), window, weight, valid, ends)
    index = torch.zeros(1, 1, dtype=torch.int32)
    y, _ = causal_conv1d_step(x[69:].unsqueeze(0).contiguous(), windows.clone(), weight, index, index)
    assert close(y[0], direct(torch.cat((window, x)), weight)[-1:], 2e-5)


@pytest.mark.parametrize(("batch", "bar"), [(1, 11), (8, 18)])
def test_modelled_price_of_a_step(batch, bar):
    example = examples.conv_step(batch)
    assert profile(example.kernel, *example.args)[1].time_us <= bar
