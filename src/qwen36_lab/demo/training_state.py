"""What the network asks of a sequence's memory, with gradients: whole sequences that start from nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.model.state import Mixing

from .scan import StateScan, UnitLowerInverse

L2_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Operations:
    """The parts that are worth compiling, each a function of tensors alone."""

    convolve: Callable[[Tensor, Tensor], Tensor]
    by_chunk: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]

    def compiled(self) -> Operations:
        """Compiled anew for each shape that they are called with."""
        return Operations(torch.compile(self.convolve, dynamic=False), torch.compile(self.by_chunk, dynamic=False))


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Causal convolution with SiLU from an empty window, fp32.

    Args:
        x: [batch, tokens, channels]; weight: [channels, kernel].
    """
    x, taps = x.float(), weight.float()
    mixed = x * taps[:, -1]
    for back in range(1, taps.shape[1]):
        mixed = mixed + F.pad(x, (0, 0, back, 0))[:, : x.shape[1]] * taps[:, -1 - back]
    return F.silu(mixed)


def by_chunk(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
    """All of the delta rule before its inverse: A, beta k e^G, beta v, k decayed to its chunk's end, e^{G_last}, q e^G
    and the scores, fp32 [batch * chunks, value_heads, BLOCK_SIZE, ...], e^{G_last} without the last two axes."""
    heads = v.shape[2]

    def chunks(t: Tensor) -> Tensor:
        t = t.float().reshape(-1, BLOCK_SIZE, *t.shape[2:]).transpose(1, 2)
        return t.repeat_interleave(heads // t.shape[1], dim=1)

    q, k = chunks(l2_norm(q.float())) * q.shape[-1] ** -0.5, chunks(l2_norm(k.float()))
    v, beta, total = chunks(v), chunks(beta)[..., None], chunks(g).cumsum(-1)
    ones = torch.ones(BLOCK_SIZE, BLOCK_SIZE, dtype=torch.bool, device=q.device)
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(~ones.tril(), -torch.inf).exp()
    a = ((beta * k) @ k.mT * decay).masked_fill(ones.triu(), 0.0)
    grown, last = total.exp()[..., None], total[..., -1:]
    faded = k * (last - total).exp()[..., None]
    return a, beta * k * grown, beta * v, faded, last.squeeze(-1).exp(), q * grown, q @ k.mT * decay


def l2_norm(x: Tensor) -> Tensor:
    """x / sqrt(sum(x^2) + eps) over the last dimension."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS)


PLAIN = Operations(convolve, by_chunk)


@dataclass(slots=True)
class TrainingState(Mixing):
    """The `StepState` of rows of equal length, a multiple of BLOCK_SIZE. It keeps nothing."""

    operations: Operations = field(default=PLAIN)

    def convolve(self, layer: int, x: Tensor, weight: Tensor) -> Tensor:
        return self.operations.convolve(x, weight)

    def delta_rule(self, layer: int, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        batch, tokens, heads, dv = v.shape
        chunks = tokens // BLOCK_SIZE
        a, w, u, k, decay, q, scores = self.operations.by_chunk(q, k, v, g, beta)
        inverse: Tensor = UnitLowerInverse.apply(a)

        def chunk_major(t: Tensor) -> Tensor:
            t = t.view(batch, chunks, *t.shape[1:]).transpose(0, 1)
            return t.reshape(chunks, batch * heads, *t.shape[3:])

        def row_major(t: Tensor) -> Tensor:
            t = t.view(chunks, batch, heads, *t.shape[2:]).transpose(0, 1)
            return t.reshape(batch * chunks, heads, *t.shape[3:])

        states, corrected = StateScan.apply(
            chunk_major(inverse @ u), chunk_major(inverse @ w), chunk_major(k), chunk_major(decay)
        )
        out = q @ row_major(states) + scores @ row_major(corrected)
        return out.transpose(1, 2).reshape(batch, tokens, heads, dv)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
