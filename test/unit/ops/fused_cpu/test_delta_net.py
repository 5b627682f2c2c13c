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
from qwen36_neuron.ops.gated_delta_rule import gated_delta_rule_recurrent
from qwen36_neuron.ops.gated_delta_rule.numba import delta_net_prefill
from qwen36_neuron.ops.gated_delta_rule.numba_step import delta_net_step
from qwen36_neuron.ops.numba.states import Entries, StateRows
from qwen36_neuron.ops.numba.weights import DeltaNetWeights

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


@dataclass
class Bank:
    """A layer's states: one that nobody owns, the rows' lanes in reverse order, then checkpoint slots.

    With `restored`, the rows' states are in slots of their own behind the others, and their lanes hold nothing.
    """

    windows: torch.Tensor
    states: torch.Tensor
    batch: int
    slots: int
    restored: bool

    @classmethod
    def of(cls, window: torch.Tensor, state: torch.Tensor, slots: int = 0, restored: bool = False) -> Bank:
        def entries(rows: torch.Tensor) -> torch.Tensor:
            lanes, kept = rows.flip(0), rows.new_full((slots, *rows.shape[1:]), torch.nan)
            held = [torch.full_like(lanes, torch.nan), kept, lanes] if restored else [lanes, kept]
            return torch.cat([torch.full_like(rows[:1], 7.0), *held]).contiguous()

        return cls(entries(window), entries(state), len(window), slots, restored)

    @property
    def lanes(self) -> list[int]:
        return list(range(self.batch, 0, -1))

    @property
    def sources(self) -> list[int]:
        return [lane + self.batch + self.slots for lane in self.lanes] if self.restored else self.lanes

    def slot(self, slot: int) -> int:
        return 1 + self.batch + slot

    def left(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(states, windows) of the lanes, after nothing else was touched."""
        for part in (self.windows, self.states):
            assert (part[0] == 7.0).all()
        return self.states[1 : self.batch + 1].flip(0), self.windows[1 : self.batch + 1].flip(0)


def prefill(
    x: torch.Tensor,
    w: DeltaNetWeights,
    window: torch.Tensor,
    state: torch.Tensor,
    lengths: Sequence[int] | None = None,
    lead: int = 0,
    fresh: bool = False,
    marks: Sequence[tuple[int, int, int]] = (),
    bank: Bank | None = None,
) -> Result:
    """In the given bank, or one made of `window` and `state`."""
    batch, bank = x.shape[0], bank or Bank.of(window, state)
    marks = [(row, tokens, bank.slot(slot)) for row, tokens, slot in marks]
    rows = StateRows.of(bank.lanes, bank.sources, lengths or [x.shape[1]] * batch, [fresh] * batch, marks)
    out = delta_net_prefill(x, w, Entries(bank.windows.numpy(), bank.states.numpy()), rows, lead)
    return out, *bank.left()


def steps(
    x: torch.Tensor,
    w: DeltaNetWeights,
    window: torch.Tensor,
    state: torch.Tensor,
    fresh: bool = False,
    restored: bool = False,
) -> Result:
    """Token by token, all rows of a batch at once; `fresh` and `restored` are about the first."""
    bank = Bank.of(window, state, restored=restored)
    lanes, sources = (np.array(entries, np.int64) for entries in (bank.lanes, bank.sources))
    starts = np.full(len(lanes), fresh)
    out = torch.empty(len(lanes), x.shape[1], w.norm_weight.shape[0] * state.shape[1])
    for t in range(x.shape[1]):
        step = torch.empty(len(lanes), out.shape[2])
        small = w.taps, w.rate, w.dt_bias, w.norm_weight, w.eps
        where = bank.windows.numpy(), bank.states.numpy(), lanes, sources, starts
        delta_net_step(x[:, t].contiguous().numpy(), *small, *where, w.key_heads, step.numpy())
        out[:, t], sources, starts = step, lanes, np.zeros_like(starts)
    return out, *bank.left()


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
    bank = Bank.of(window, state, slots=4)
    marks = [(0, BLOCK_SIZE, 3), (1, BLOCK_SIZE, 1), (1, 2 * BLOCK_SIZE, 2)]
    whole = prefill(x, weights, window, state, bank=bank, marks=marks)
    at, parts = 0, []
    for end in (BLOCK_SIZE, 2 * BLOCK_SIZE, 192):
        out, state, window = prefill(x[:, at:end].contiguous(), weights, window, state)
        at = end
        parts.append(out)
        for row, tokens, slot in marks:
            if tokens == end:
                assert torch.equal(bank.states[bank.slot(slot)], state[row])
                assert torch.equal(bank.windows[bank.slot(slot)], window[row])
    assert torch.equal(torch.cat(parts, dim=1), whole[0])
    assert torch.equal(state, whole[1])
    assert torch.equal(window, whole[2])
    assert bank.states[bank.slot(0)].isnan().all()  # a slot that no checkpoint was given


def test_a_checkpoint_of_a_short_call_takes_what_came_before_it() -> None:
    """Its boundary is one token after the call's first: the window is mostly that of the lane."""
    shape = Shape()
    weights, (window, state) = weights_of(shape), memory(shape)
    x = inputs_of(shape, weights, 5)
    bank = Bank.of(window, state, slots=1)
    prefill(x, weights, window, state, lead=BLOCK_SIZE - 1, bank=bank, marks=[(0, 1, 0)])
    expected = definition(x[:, :1], weights, window, state, shape)
    assert_close(bank.states[bank.slot(0)], expected[1][0])
    assert torch.equal(bank.windows[bank.slot(0)], expected[2][0].float())


@pytest.mark.parametrize("length", [2, 20, 64, 150])
def test_a_fresh_start_is_one_from_zero_whatever_the_lane_holds(length: int) -> None:
    shape = Shape(key_heads=2)
    weights, (window, state) = weights_of(shape), memory(shape, batch=2)
    x, lengths = inputs_of(shape, weights, 150, batch=2), [150, length]
    x[1, length:] = torch.nan
    nothing, anything = (tuple(torch.full_like(m, value) for m in (window, state)) for value in (0.0, torch.nan))
    zeroed = prefill(x, weights, *nothing, lengths)
    fresh = prefill(x, weights, *anything, lengths, fresh=True)
    assert all(torch.equal(a, b) for a, b in zip(zeroed, fresh, strict=True))


def test_a_fresh_start_of_one_token_is_one_from_zero_whatever_the_lane_holds() -> None:
    shape = Shape(key_heads=2)
    weights, (window, state) = weights_of(shape), memory(shape, batch=2)
    x = inputs_of(shape, weights, 3, batch=2)
    nothing, anything = (tuple(torch.full_like(m, value) for m in (window, state)) for value in (0.0, torch.nan))
    zeroed, fresh = steps(x, weights, *nothing), steps(x, weights, *anything, fresh=True)
    assert all(torch.equal(a, b) for a, b in zip(zeroed, fresh, strict=True))


@pytest.mark.parametrize("tokens", [1, 2, 64, 130])
def test_restoring_is_reading_another_entry(tokens: int) -> None:
    """The lanes hold nothing before, and the entries that were read hold the same after."""
    shape = Shape(key_heads=2)
    weights, (window, state) = weights_of(shape), memory(shape, batch=2)
    x = inputs_of(shape, weights, tokens, batch=2)
    bank = Bank.of(window, state, slots=1, restored=True)
    marks = [(1, 64, 0)] if tokens > 64 else []
    restored = prefill(x, weights, window, state, marks=marks, bank=bank)
    continued = prefill(x, weights, window, state)
    assert all(torch.equal(a, b) for a, b in zip(continued, restored, strict=True))
    assert torch.equal(bank.states[bank.sources], state)
    assert torch.equal(bank.windows[bank.sources], window)
    stepped, again = steps(x[:, :3], weights, window, state), steps(x[:, :3], weights, window, state, restored=True)
    assert all(torch.equal(a, b) for a, b in zip(stepped, again, strict=True))


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
