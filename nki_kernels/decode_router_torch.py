"""Torch reference of `decode_router`."""

import torch

from .decode_projection_torch import TILE, values_of


def decode_router_torch(
    x: torch.Tensor,
    gamma: torch.Tensor,
    weight: torch.Tensor,
    top_k: int = 8,
    renormalise: bool = True,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `decode_router`."""
    wide, lines = x.float(), gamma.shape[1]
    normed = wide * gamma.reshape(-1) * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normed = normed.to(torch.bfloat16).float().reshape(len(x), TILE, lines)
    logits = torch.einsum("rpl,ple->re", normed, values_of(weight)[0].reshape(TILE, lines, -1))
    best, experts = torch.sort(logits, dim=-1, descending=True, stable=True)
    weights = torch.softmax(best, dim=-1)[:, :top_k]
    weights = weights / weights.sum(-1, keepdim=True) if renormalise else weights
    return weights, experts[:, :top_k].to(torch.int32)
