"""The fused DeltaNet against its definition in fp64: convolution, gates, recurrence, gated norm."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("numba")

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.ops.fused_cpu.delta_net import delta_net_step
from qwen36_neuron.ops.fused_cpu.delta_net_prefill import Entries, StateRows, delta_net_prefill
from qwen36_neuron.ops.fused_cpu.weights import DeltaNetWeights
from qwen36_neuron.ops.gated_delta_rule import gated_delta_rule_recurrent

CORRELATIONS = (0.0, 0.5, 0.9, 0.99, 1.0)
BETAS = (0.5, 0.9, 0.99)
GATES = (-1e-4, -1e-2, -1.0, -8.0)
TOLERANCE = 1e-5
"""Of the fp64 result's largest magnitude, as for the other forms of the delta rule."""

Result = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""(output, state, window)."""


@dataclass(frozen=True)
class Shape:
    key_heads: int = 1
    share: int = 3
    dk: int = 128
    dv: int = 128
    taps: int = 4

    @property
    def value_heads(self) -> int:
        return self.key_heads * self.share

    @property
    def channels(self) -> int:
        return 2 * self.key_heads * self.dk + self.value_heads * self.dv


def weights_of(shape: Shape, seed: int = 0) -> DeltaNetWeights:
    """Every tap, rate and factor different; rates near -1, so that a gate is about -softplus(a)."""
    rng = np.random.default_rng(seed)
    return DeltaNetWeights(
        key_heads=shape.key_heads,
        taps=(rng.standard_normal((shape.taps, shape.channels)) * 0.3 + 0.3).astype(np.float32),
        rate=-np.ones(shape.value_heads, np.float32),
        dt_bias=rng.standard_normal(shape.value_heads).astype(np.float32),
        norm_weight=(1 + 0.2 * rng.standard_normal(shape.dv)).astype(np.float32),
        eps=np.float32(1e-6),
    )


def inputs_of(
    shape: Shape,
    weights: DeltaNetWeights,
    tokens: int,
    batch: int = 1,
    correlation: float = 0.0,
    beta: float | None = None,
    gate: float | None = None,
    seed: int = 1,
) -> torch.Tensor:
    """[batch, tokens, width]: key channels that share `correlation` of their variance over the tokens."""
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, tokens, shape.channels + shape.value_heads * (shape.dv + 2), generator=made)
    keys = slice(shape.key_heads * shape.dk, 2 * shape.key_heads * shape.dk)
    shared = torch.randn(batch, 1, keys.stop - keys.start, generator=made)
    x[..., keys] = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * x[..., keys]
    b, a = x[..., -2 * shape.value_heads : -shape.value_heads], x[..., -shape.value_heads :]
    if beta is not None:
        b.fill_(math.log(beta / (1 - beta)))
    if gate is not None:
        a.copy_((math.log(math.expm1(-gate)) - torch.from_numpy(weights.dt_bias)).expand_as(a))
    return x


def definition(x: torch.Tensor, w: DeltaNetWeights, window: torch.Tensor, state: torch.Tensor, shape: Shape) -> Result:
    """Of one row x [1, tokens, width], in fp64."""
    x, window, state = x.double(), window.double(), state.double()
    taps, count = torch.from_numpy(w.taps).double(), x.shape[1]
    joined = torch.cat((window, x[..., : shape.channels]), dim=1)
    qkv = F.silu(sum(joined[:, t : t + count] * taps[t] for t in range(shape.taps)))
    q, k, v = qkv.split([shape.key_heads * shape.dk] * 2 + [shape.value_heads * shape.dv], dim=-1)
    z, b, a = x[..., shape.channels :].split([shape.value_heads * shape.dv] + [shape.value_heads] * 2, dim=-1)
    g = torch.from_numpy(w.rate).double() * F.softplus(a + torch.from_numpy(w.dt_bias).double())
    out, state = gated_delta_rule_recurrent(
        q.unflatten(2, (-1, shape.dk)),
        k.unflatten(2, (-1, shape.dk)),
        v.unflatten(2, (-1, shape.dv)),
        g,
        torch.sigmoid(b),
        state,
    )
    normed = out * (out.square().mean(-1, keepdim=True) + float(w.eps)).rsqrt() * torch.from_numpy(w.norm_weight)
    return (normed * F.silu(z.unflatten(2, (-1, shape.dv)))).flatten(2), state, joined[:, count:]


def memory(shape: Shape, batch: int = 1, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """(windows, states) that hold something."""
    made = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, shape.taps - 1, shape.channels, generator=made),
        0.3 * torch.randn(batch, shape.value_heads, shape.dk, shape.dv, generator=made),
    )


def prefill(
    x: torch.Tensor,
    w: DeltaNetWeights,
    window: torch.Tensor,
    state: torch.Tensor,
    lengths: Sequence[int] | None = None,
    lead: int = 0,
    fresh: bool = False,
    slots: Entries | None = None,
    marks: Sequence[tuple[int, int, int]] = (),
) -> Result:
    """In lanes in reverse order, beside one that nobody owns."""
    batch = x.shape[0]
    windows, states = (torch.cat((m, torch.full_like(m[:1], 7.0))).flip(0).contiguous() for m in (window, state))
    lanes = Entries(windows.numpy(), states.numpy())
    rows = StateRows.of(range(batch, 0, -1), lengths or [x.shape[1]] * batch, [fresh] * batch, marks)
    out = delta_net_prefill(x, w, lanes, slots or empty(0, lanes), rows, lead)
    assert (windows[0] == 7.0).all()
    assert (states[0] == 7.0).all()
    return out, states[1:].flip(0), windows[1:].flip(0)


def empty(entries: int, like: Entries) -> Entries:
    """So many slots that hold nothing yet."""
    return Entries(*(np.full((entries, *part.shape[1:]), np.nan, np.float32) for part in like))


def steps(x: torch.Tensor, w: DeltaNetWeights, window: torch.Tensor, state: torch.Tensor) -> Result:
    """Token by token, all rows of a batch at once, in lanes in reverse order beside one that nobody owns."""
    batch = x.shape[0]
    windows, states = (torch.cat((m, torch.full_like(m[:1], 7.0))).flip(0).contiguous() for m in (window, state))
    lanes = np.arange(batch, 0, -1)
    out = torch.empty(batch, x.shape[1], w.norm_weight.shape[0] * state.shape[1])
    for t in range(x.shape[1]):
        step = torch.empty(batch, out.shape[2])
        small = w.taps, w.rate, w.dt_bias, w.norm_weight, w.eps
        memory_ = windows.numpy(), states.numpy(), lanes
        delta_net_step(x[:, t].contiguous().numpy(), *small, *memory_, w.key_heads, step.numpy())
        out[:, t] = step
    assert (windows[0] == 7.0).all()
    assert (states[0] == 7.0).all()
    return out, states[1:].flip(0), windows[1:].flip(0)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.isfinite(actual).all()
    assert (actual - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize(("correlation", "beta", "gate"), itertools.product(CORRELATIONS, BETAS, GATES))
def test_hostile_inputs(correlation: float, beta: float, gate: float) -> None:
    shape = Shape()
    weights = weights_of(shape)
    x = inputs_of(shape, weights, 200, correlation=correlation, beta=beta, gate=gate)
    window, state = memory(shape)
    expected = definition(x, weights, window, state, shape)
    for actual in (prefill(x, weights, window, state), steps(x, weights, window, state)):
        assert_close(actual[0], expected[0])
        assert_close(actual[1], expected[1])


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("lead", [0, 1, 3, 62, 63])
def test_lengths_and_leads(tokens: int, lead: int) -> None:
    shape = Shape(key_heads=2)
    weights, (window, state) = weights_of(shape), memory(shape)
    x = inputs_of(shape, weights, tokens, correlation=0.9)
    out, final, left = prefill(x, weights, window, state, lead=lead)
    expected = definition(x, weights, window, state, shape)
    assert_close(out, expected[0])
    assert_close(final, expected[1])
    assert torch.equal(left, expected[2].float())


@pytest.mark.parametrize(
    "shape",
    [Shape(1, 1), Shape(2, 1), Shape(2, 2), Shape(4, 3), Shape(2, 2, 64, 32), Shape(1, 2, 18, 20), Shape(2, 1, taps=2)],
)
def test_other_shapes(shape: Shape) -> None:
    """Head sizes that are no multiple of what the loops unroll, a shorter convolution, one value head a key head."""
    weights, (window, state) = weights_of(shape), memory(shape, batch=2)
    x = inputs_of(shape, weights, 70, batch=2, correlation=0.5)
    prefilled, stepped = prefill(x, weights, window, state), steps(x, weights, window, state)
    for row in range(2):
        expected = definition(x[row : row + 1], weights, window[row : row + 1], state[row : row + 1], shape)
        for actual in (prefilled, stepped):
            assert_close(actual[0][row : row + 1], expected[0])
            assert_close(actual[1][row : row + 1], expected[1])
            assert torch.equal(actual[2][row : row + 1], expected[2].float())


def test_padding_changes_nothing() -> None:
    """Rows of unequal lengths, what is after them being anything at all; a padded row gives what it gives alone."""
    shape, lengths, lead = Shape(), (130, 1, 64, 100), 5
    weights, (window, state) = weights_of(shape), memory(shape, batch=4)
    x = inputs_of(shape, weights, 130, batch=4, correlation=0.99)
    for row, length in enumerate(lengths):
        x[row, length:] = torch.nan
    out, final, left = prefill(x, weights, window, state, lengths, lead)
    for row, length in enumerate(lengths):
        alone = slice(row, row + 1)
        own = prefill(x[alone, :length].contiguous(), weights, window[alone], state[alone], lead=lead)
        assert torch.equal(out[row, :length], own[0][0])
        assert torch.equal(final[row], own[1][0])
        assert torch.equal(left[row], own[2][0])
        assert (out[row, length:] == 0.0).all()


def test_a_cut_at_a_boundary_changes_no_bit_and_checkpoints_are_what_lanes_are_there() -> None:
    shape = Shape(key_heads=2)
    weights, (window, state) = weights_of(shape), memory(shape, batch=2)
    x = inputs_of(shape, weights, 192, batch=2, correlation=0.9)
    slots = empty(4, Entries(window.numpy(), state.numpy()))
    marks = [(0, BLOCK_SIZE, 3), (1, BLOCK_SIZE, 1), (1, 2 * BLOCK_SIZE, 2)]
    whole = prefill(x, weights, window, state, slots=slots, marks=marks)
    at, parts = 0, []
    for end in (BLOCK_SIZE, 2 * BLOCK_SIZE, 192):
        out, state, window = prefill(x[:, at:end].contiguous(), weights, window, state)
        at = end
        parts.append(out)
        for row, tokens, slot in marks:
            if tokens == end:
                assert np.array_equal(slots.states[slot], state[row])
                assert np.array_equal(slots.windows[slot], window[row])
    assert torch.equal(torch.cat(parts, dim=1), whole[0])
    assert torch.equal(state, whole[1])
    assert torch.equal(window, whole[2])
    assert np.isnan(slots.states[0]).all()  # a slot that no checkpoint was given


def test_a_checkpoint_of_a_short_call_takes_what_came_before_it() -> None:
    """Its boundary is one token after the call's first: the window is mostly that of the lane."""
    shape = Shape()
    weights, (window, state) = weights_of(shape), memory(shape)
    x = inputs_of(shape, weights, 5)
    slots = empty(1, Entries(window.numpy(), state.numpy()))
    prefill(x, weights, window, state, lead=BLOCK_SIZE - 1, slots=slots, marks=[(0, 1, 0)])
    expected = definition(x[:, :1], weights, window, state, shape)
    assert_close(torch.from_numpy(slots.states), expected[1])
    assert torch.equal(torch.from_numpy(slots.windows), expected[2].float())


@pytest.mark.parametrize("length", [20, 64, 150])
def test_a_fresh_start_is_one_from_zero_whatever_the_lane_holds(length: int) -> None:
    shape = Shape(key_heads=2)
    weights, (window, state) = weights_of(shape), memory(shape, batch=2)
    x, lengths = inputs_of(shape, weights, 150, batch=2), [150, length]
    zeroed = prefill(x, weights, window, torch.zeros_like(state), lengths)
    fresh = prefill(x, weights, window, torch.full_like(state, torch.nan), lengths, fresh=True)
    assert torch.equal(zeroed[0], fresh[0])
    assert torch.equal(zeroed[1], fresh[1])


@pytest.mark.parametrize(("batch", "shape"), [(1, Shape(2, 3)), (1, Shape(1, 3)), (3, Shape(1, 2))])
def test_how_heads_are_shared_out_changes_no_bit(batch: int, shape: Shape) -> None:
    """One thread takes the value heads of a key head together, many take each for itself."""
    weights, (window, state) = weights_of(shape), memory(shape, batch=batch)
    x, threads = inputs_of(shape, weights, 130, batch=batch), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = prefill(x, weights, window, state)
        torch.set_num_threads(batch * shape.value_heads)
        apart = prefill(x, weights, window, state)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))
