"""Mixtures of experts: routers that are kind and that are not, weights, and what comes of them in fp64."""

from __future__ import annotations

import torch
from bank_cases import normal

EXPERTS, TOP_K, HIDDEN, INNER = 16, 4, 48, 40

ROUTERS = ("random", "ties", "one expert", "few experts", "large")


def logits_of(router: str, tokens: int) -> torch.Tensor:
    """fp32 [tokens, EXPERTS] of a router that is kind, or one that is not."""
    logits = normal(tokens, EXPERTS, seed=5)
    if router == "ties":
        logits = logits.round()  # among the experts that are left in or out too
        logits[::3] = 0.0
    elif router == "one expert":
        logits[:, 3] = 60.0  # the others' probabilities are next to nothing
    elif router == "few experts":
        logits[:, TOP_K:] -= 1e4  # underflow to exactly zero
    elif router == "large":
        logits *= 3e4  # exp of any of them overflows
    return logits


def exact_experts(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor
) -> torch.Tensor:
    """fp64, a token and an expert at a time."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(len(x)):
        for weight, expert in zip(weights[token].double(), chosen[token].tolist(), strict=True):
            gate, up = (gate_up[expert].double() @ x[token].double()).chunk(2)
            out[token] += weight * (down[expert].double() @ (gate * gate.sigmoid() * up))
    return out


def weights_of(experts: int = EXPERTS, inner: int = INNER) -> tuple[torch.Tensor, torch.Tensor]:
    """Gates with ups [experts, 2 inner, HIDDEN], and downs [experts, HIDDEN, inner]."""
    return normal(experts, 2 * inner, HIDDEN, seed=1) / 7, normal(experts, HIDDEN, inner, seed=2) / 6
