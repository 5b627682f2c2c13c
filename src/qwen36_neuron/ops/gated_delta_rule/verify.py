"""The gated delta rule for a token and drafts behind it, in fp32, a graph's form.

A draft changes no state. It leaves its factors: its key k of unit length, the row delta that it would write there, and
its gate g. To take accepted ones in is S <- e^(g_1 + ... + g_a) S + sum_j e^(g_(j+1) + ... + g_a) k_j delta_j^T, which
asks nothing of the state any more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .naive import l2norm

Factors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Of n drafts a row: k [batch, n, key_heads, dk], delta [batch, n, value_heads, dv], g [batch, n, value_heads]."""


def pack_factors(factors: Factors) -> torch.Tensor:
    """[batch, n, key_heads, dk + share * (dv + 1)]: of a key head its key, then the deltas and gates of its heads."""
    k, delta, g = factors
    return torch.cat((k, *(x.unflatten(2, (k.shape[2], -1)).flatten(3) for x in (delta, g.unsqueeze(-1)))), dim=-1)


def unpack_factors(packed: torch.Tensor, dk: int, share: int) -> Factors:
    """What `pack_factors` was given."""
    k, delta, g = packed.split((dk, packed.shape[-1] - dk - share, share), dim=-1)
    return k, delta.unflatten(-1, (share, -1)).flatten(2, 3), g.flatten(2)


def absorb(state: torch.Tensor, factors: Factors, count: torch.Tensor) -> torch.Tensor:
    """The state [batch, value_heads, dk, dv] after the first `count` (int [batch]) of its pending drafts."""
    k, delta, g = factors
    share, places = g.shape[2] // k.shape[2], torch.arange(g.shape[1], device=g.device)
    taken = places.view(1, -1, 1) < count.view(-1, 1, 1)
    gates = g.masked_fill(~taken, 0.0)
    # Gates after a draft, added up from the last: a difference of running sums would lose the small ones.
    later = F.pad(gates.flip(1).cumsum(1)[:, :-1], (0, 0, 1, 0)).flip(1)
    weights = later.exp().masked_fill(~taken, 0.0)
    keys = k.repeat_interleave(share, dim=2) * weights.unsqueeze(-1)
    written = torch.einsum("bnhk,bnhv->bhkv", keys, delta)
    return torch.addcmul(written, gates.sum(1).exp()[..., None, None], state)


def gated_delta_rule_verify(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
    pending: torch.Tensor,
    accepted: torch.Tensor,
    after: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of a token that is certain and of drafts, behind the pending drafts that were accepted.

    Args:
        q, k: [batch, 1 + drafts, key_heads, dk], not normalised; v: [batch, 1 + drafts, value_heads, dv].
        g, beta: [batch, 1 + drafts, value_heads] fp32.
        state: [batch, value_heads, dk, dv] fp32, before the pending drafts; not changed.
        pending: fp32 [batch, most drafts, key_heads, `factor_columns`]; accepted: int [batch], of them.
        after: int [batch], tokens after which a state is wanted, accepted ones counted, at most accepted + 1.
    Returns:
        (o [batch, 1 + drafts, value_heads, dv] fp32, the state after the certain token, the state after `after` tokens,
        factors of the drafts [batch, drafts, key_heads, `factor_columns`]).
    """
    share, dk = v.shape[2] // k.shape[2], k.shape[3]
    held = unpack_factors(pending, dk, share)
    unit, query, v = l2norm(k.float()), l2norm(q.float()), v.float()
    keys, queries = unit.repeat_interleave(share, dim=2), query.repeat_interleave(share, dim=2)
    beyond, left, out, deltas = absorb(state, held, accepted), state, [], []
    for token in range(q.shape[1]):
        beyond = beyond * g[:, token, :, None, None].exp()
        read = torch.einsum("bhkv,bhk->bhv", beyond, keys[:, token])
        deltas.append((v[:, token] - read) * beta[:, token, :, None])
        beyond = torch.addcmul(beyond, keys[:, token].unsqueeze(-1), deltas[token].unsqueeze(-2))
        out.append(torch.einsum("bhkv,bhk->bhv", beyond, queries[:, token]))
        left = beyond if token == 0 else left
    early = absorb(state, held, torch.minimum(after, accepted))
    kept = torch.where((after > accepted).view(-1, 1, 1, 1), left, early)
    drafts = unit[:, 1:], torch.stack(deltas, dim=1)[:, 1:], g[:, 1:]
    return torch.stack(out, dim=1) * dk**-0.5, left, kept, pack_factors(drafts)
