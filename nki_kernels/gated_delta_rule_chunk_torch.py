"""Torch reference of `gated_delta_rule_chunk`: same arguments, same results, fp32."""

import torch

L2_EPS = 1e-6


def gated_delta_rule_chunk_torch(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `gated_delta_rule_chunk`; any leading dimensions, heads included, may come before [C, D] and [D, D]."""
    q, k, v = q.float(), k.float(), v.float()
    q = q * torch.rsqrt(q.shape[-1] * (q.square().sum(-1, keepdim=True) + L2_EPS))
    k = k * torch.rsqrt(k.square().sum(-1, keepdim=True) + L2_EPS)
    size = k.shape[-2]
    # Row i, column j: the sum of g over j < k <= i, without the cancellation of a difference of prefix sums.
    lower = torch.ones(size, size).tril()
    decay = ((lower * g.mT) @ lower.tril(-1)).exp().tril()
    a = (beta * (k @ k.mT) * decay).tril(-1)
    grown = g.cumsum(-2).exp()
    rhs = torch.cat((beta * v, beta * grown * k), dim=-1)
    u, w = torch.linalg.solve_triangular(a, rhs, upper=False, unitriangular=True).split(v.shape[-1], dim=-1)
    v_new = u - w @ state
    o = (grown * q) @ state + ((q @ k.mT) * decay) @ v_new
    faded = (g.sum(-2, keepdim=True) - g.cumsum(-2)).exp() * k
    return o, g.sum(-2, keepdim=True).exp() * state + faded.mT @ v_new
