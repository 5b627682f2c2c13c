"""The gated delta rule, token by token: the recurrence that defines it.

Per value head, with state S [dk, dv], key k and query q of unit length, gate g <= 0 and write strength beta:

    S <- exp(g) S;   S <- S + k (beta (v - k^T S))^T;   o = q^T S / sqrt(dk)

A token with beta = 0 and g = 0 changes nothing, exactly: that is how padding is done.
"""

from __future__ import annotations

import torch

from ..norm import inverse_root

L2_EPS = 1e-6


def l2norm(x: torch.Tensor) -> torch.Tensor:
    """x / sqrt(sum(x^2) + 1e-6) over the last dimension: the sum, not the mean, and the epsilon inside the root."""
    return x * inverse_root(x, L2_EPS)


def gated_delta_rule_recurrent(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, token by token, in the type of `state`: with an fp64 state it is the oracle of all other forms.

    Args:
        q, k: [batch, tokens, key_heads, dk], not normalised.
        v: [batch, tokens, value_heads, dv]; value head h uses key head h // (value_heads / key_heads).
        g: [batch, tokens, value_heads], log of the decay.
        beta: [batch, tokens, value_heads].
        state: [batch, value_heads, dk, dv], not changed.
    Returns:
        (o [batch, tokens, value_heads, dv], state after the last token).
    """
    share = v.shape[2] // k.shape[2]
    q, k, v, g, beta = (x.to(state.dtype) for x in (q, k, v, g, beta))
    q = l2norm(q).repeat_interleave(share, dim=2) * q.shape[-1] ** -0.5
    k = l2norm(k).repeat_interleave(share, dim=2)
    out = []
    for t in range(q.shape[1]):
        state = state * g[:, t, :, None, None].exp()
        delta = (v[:, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, t])) * beta[:, t, :, None]
        state = state + k[:, t, :, :, None] * delta[:, :, None, :]
        out.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(out, dim=1), state
