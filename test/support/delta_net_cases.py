"""A DeltaNet block between its projections: inputs, its definition in fp64, and the compiled forms run in a bank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from qwen36_neuron.ops.causal_conv1d import naive_causal_conv1d
from qwen36_neuron.ops.gated_delta_rule import gated_delta_rule_recurrent

if TYPE_CHECKING:  # imported on use: Numba may not be installed
    from qwen36_neuron.ops.numba.weights import DeltaNetWeights

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
    from qwen36_neuron.ops.numba.weights import DeltaNetWeights

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
    taps = torch.from_numpy(w.taps).double()
    inputs = x[..., : shape.channels]
    qkv = naive_causal_conv1d(inputs, window, taps.t())
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
    return (
        (normed * F.silu(z.unflatten(2, (-1, shape.dv)))).flatten(2),
        state,
        torch.cat((window, inputs), dim=1)[:, x.shape[1] :],
    )


def memory(shape: Shape, batch: int = 1, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """(windows, states) that hold something."""
    made = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, shape.taps - 1, shape.channels, generator=made),
        0.3 * torch.randn(batch, shape.value_heads, shape.dk, shape.dv, generator=made),
    )


@dataclass
class Bank:
    """A layer's states: the scratch entry, the rows' lanes in reverse order, then checkpoint slots.

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
        """(states, windows) of the lanes, after a check that the scratch entry was not touched."""
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
    from qwen36_neuron.ops.gated_delta_rule.numba import delta_net_prefill
    from qwen36_neuron.ops.numba.states import Entries, StateRows

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
    from qwen36_neuron.ops.gated_delta_rule.numba_step import delta_net_step

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
