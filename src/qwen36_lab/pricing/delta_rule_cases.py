"""Inputs for the delta rule kernels, hostile ones among them, and the fp64 recurrence that judges them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

D = 128
EPS = 1e-6


@dataclass(frozen=True)
class Case:
    """q, k [tokens, key heads, D], v [tokens, heads, D], g and beta fp32 [tokens, heads], state fp32 [heads, D, D]."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor
    state: torch.Tensor

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.q, self.k, self.v, self.g, self.beta, self.state

    def cut(self, first: int, last: int, state: torch.Tensor) -> "Case":
        """Tokens [first, last) from another state."""
        q, k, v, g, beta = (x[first:last].contiguous() for x in (self.q, self.k, self.v, self.g, self.beta))
        return Case(q, k, v, g, beta, state)

    def cast(self, dtype: torch.dtype) -> "Case":
        """With q, k, v in another type."""
        return replace(self, q=self.q.to(dtype), k=self.k.to(dtype), v=self.v.to(dtype))


def make_case(
    tokens: int, key_heads: int = 1, heads: int = 1, correlation: float = 0.0, beta: float | None = None,
    gate: float | None = None, seed: int = 0,
) -> Case:  # fmt: skip
    """Keys that share `correlation` of their variance, a write strength and gate (None: spread), a carried state."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape)

    k = np.sqrt(correlation) * normal(1, key_heads, D) + np.sqrt(1 - correlation) * normal(tokens, key_heads, D)
    g = -np.exp(normal(tokens, heads) - 2) if gate is None else np.full((tokens, heads), gate)
    b = 1 / (1 + np.exp(-normal(tokens, heads))) if beta is None else np.full((tokens, heads), beta)
    values = (3 * normal(tokens, key_heads, D), 0.7 * k, normal(tokens, heads, D), g, b, 0.3 * normal(heads, D, D))
    return Case(*(torch.from_numpy(x.astype(np.float32)) for x in values))


def recurrence(case: Case, normalise: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(o [tokens, heads, D], the state after every token [tokens, heads, D, D]), fp64, token by token.

    normalise: q and k are made of unit length first.
    """
    q, k, v, g, beta, state = (x.double().numpy() for x in case.tensors)
    share = v.shape[1] // k.shape[1]
    if normalise:
        q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + EPS) for x in (q, k))
    q, k = np.repeat(q, share, axis=1) / np.sqrt(D), np.repeat(k, share, axis=1)
    out, states = [], []
    for t in range(q.shape[0]):
        state = state * np.exp(g[t])[:, None, None]
        delta = (v[t] - np.einsum("hkv,hk->hv", state, k[t])) * beta[t][:, None]
        state = state + k[t][:, :, None] * delta[:, None, :]
        out.append(np.einsum("hkv,hk->hv", state, q[t]))
        states.append(state)
    return np.stack(out), np.stack(states)


def worst(got: torch.Tensor, want: np.ndarray) -> float:
    """Largest error relative to the largest magnitude wanted; infinite if anything is not finite."""
    error = np.abs(got.double().numpy() - want).max() / np.abs(want).max()
    return float(error) if np.isfinite(error) else float("inf")


def prefilled(form: Callable[..., Any], case: Case, valid: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """(o, the state after the last token) by a prefill kernel or its twin, without checkpoints."""
    if valid is None:
        valid = torch.tensor([[0, case.g.shape[0]]], dtype=torch.int32)
    bank = torch.full((1, *case.state.shape), 7.0)
    o, bank = form(*case.tensors, valid, bank, torch.zeros(1, 1, dtype=torch.int32))
    return o, bank[0]
