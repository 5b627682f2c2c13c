"""The mixture of experts, defined: the router's choice, and the routed experts an expert at a time.

The shared expert, which every token has, is a feed-forward block like any other and no part of this.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..mlp import swiglu


def route(logits: torch.Tensor, top_k: int, renormalise: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts of each token, and how much of each.

    Softmax is over all experts, before the choice. A row's choice depends on its own logits alone, ties included:
    they fall as `torch.topk` lets them, which is transformers' choice too.

    Args:
        logits: fp32 [tokens, experts].
        top_k: experts of a token.
        renormalise: have a token's weights sum to one, as `norm_topk_prob` of a config says.
    Returns:
        weights fp32 [tokens, top_k], in descending order, and experts int64 [tokens, top_k].
    Raises:
        ValueError: top_k is not between 1 and the number of experts.
    """
    if not 1 <= top_k <= logits.shape[-1]:
        raise ValueError(f"top_k is {top_k}, must be from 1 to the number of experts, {logits.shape[-1]}")
    weights, chosen = torch.softmax(logits.float(), dim=-1).topk(top_k, dim=-1)
    return (weights / weights.sum(-1, keepdim=True) if renormalise else weights), chosen


def experts(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor
) -> torch.Tensor:
    """The weighted sum of what its experts make of each token: down(silu(gate(x)) * up(x)).

    Only experts that a token chose are read. Their sum is fp32, in the order of their numbers.

    Args:
        x: [tokens, hidden], of the weights' type.
        gate_up: [experts, 2 inner, hidden], gates before ups; down: [experts, hidden, inner].
        weights: fp32 [tokens, top_k]; chosen: int64 [tokens, top_k]. See `route`.
    Returns:
        [tokens, hidden] of x's type.
    """
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in chosen.unique().tolist():
        tokens, places = (chosen == expert).nonzero(as_tuple=True)
        inner = swiglu(F.linear(x[tokens], gate_up[expert]))
        found = F.linear(inner, down[expert]).float()
        total.index_add_(0, tokens, found * weights[tokens, places].unsqueeze(1))
    return total.to(x.dtype)
