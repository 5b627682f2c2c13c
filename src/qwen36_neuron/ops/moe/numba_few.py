"""A mixture of experts inside compiled code: its routing too, for calls that cannot come back to torch."""

from __future__ import annotations

import numpy as np

from ..numba.projections import project_add_few
from ..numba.scalar import Array, compiled, exp, f32, one, sigmoid, zero
from .numba import Mixture, add_experts


@compiled(inline=False)
def add_mixture(mixture: Mixture, x: Array, out: Array) -> None:
    """out += the block of x, fp32 [tokens, hidden], contiguous, as `Mixture.add_to`, of few tokens.

    Where experts are equally likely the first ones are taken, which is not always `torch.topk`'s choice.
    """
    tokens, experts = x.shape[0], mixture.gate_up.experts
    scores = np.zeros((tokens, experts + 1), np.float32)
    project_add_few(x, mixture.scores, scores)
    weights, chosen = np.empty((tokens, mixture.top_k), np.float32), np.empty((tokens, mixture.top_k), np.int64)
    share, every = np.empty((tokens, 1), np.float32), np.zeros((tokens, 1), np.int64)
    for token in range(tokens):
        share[token, 0] = sigmoid(scores[token, experts])
        route_row(scores[token, :experts], mixture.renormalise, weights[token], chosen[token])
    gate_up, down = mixture.gate_up.packed, mixture.down.packed
    add_experts(x, gate_up, down, experts, weights, chosen, out)
    add_experts(x, mixture.shared_gate_up.packed, mixture.shared_down.packed, 1, share, every, out)


@compiled(inline=False)
def route_row(scores: Array, renormalise: bool, weights: Array, chosen: Array) -> None:
    """`route` of one token.

    Args:
        scores: fp32 [experts], overwritten.
        weights: fp32 [top_k]; chosen: int64 [top_k]: the result, the most likely first.
    """
    most, total = scores[0], zero
    for score in scores:
        most = max(most, score)
    for expert in range(scores.shape[0]):
        scores[expert] = exp(scores[expert] - most)
        total += scores[expert]
    kept = zero
    for place in range(chosen.shape[0]):
        best = np.argmax(scores)
        chosen[place], weights[place] = best, scores[best]
        kept += scores[best]
        scores[best] = f32(-1.0)
    unit = one / (kept if renormalise else total)
    for place in range(chosen.shape[0]):
        weights[place] *= unit
