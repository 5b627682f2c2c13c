"""The gated delta rule for one token a sequence, in fp32: the form of a decode step."""

from __future__ import annotations

import torch

from .naive import l2norm


def gated_delta_rule_step(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, state: torch.Tensor
) -> torch.Tensor:
    """One token a sequence, the state updated in place.

    The old state is read once for both the key and the query, o = e^g q^T S + (q.k) delta, and written once.

    Args:
        q, k: [batch, key_heads, dk]; v: [batch, value_heads, dv]; g, beta: [batch, value_heads] fp32.
        state: [batch, value_heads, dk, dv] fp32.
    Returns:
        o [batch, value_heads, dv] fp32.
    """
    batch, value_heads, dk, dv = state.shape
    key_heads = k.shape[1]
    share = value_heads // key_heads
    pair = l2norm(torch.stack((k, q), dim=2).float())  # [batch, key_heads, 2, dk]
    match = (pair[:, :, 0] * pair[:, :, 1]).sum(-1).view(batch, key_heads, 1, 1)
    pair = pair.unsqueeze(2).expand(-1, -1, share, -1, -1).reshape(-1, 2, dk)
    decay, flat = g.exp().view(-1, 1, 1), state.view(-1, dk, dv)
    read = torch.bmm(pair, flat).mul_(decay).view(batch, key_heads, share, 2, dv)
    delta = (v.view(batch, key_heads, share, dv) - read[:, :, :, 0]) * beta.view(batch, key_heads, share, 1)
    flat.mul_(decay).addcmul_(pair[:, 0].unsqueeze(-1), delta.view(-1, 1, dv))
    out = torch.addcmul(read[:, :, :, 1], match, delta).mul_(dk**-0.5)
    return out.view(batch, value_heads, dv)
