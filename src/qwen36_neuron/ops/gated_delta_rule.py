"""The gated delta rule: the recurrence that defines it, the chunked form for prefill and the single step for decode.

Per value head, with state S [dk, dv], key k and query q of unit length, gate g <= 0 and write strength beta:

    S <- exp(g) S;   S <- S + k (beta (v - k^T S))^T;   o = q^T S / sqrt(dk)

The chunked form (Yang et al., "Parallelizing Linear Transformers with the Delta Rule", and "Gated Delta Networks")
follows from writing the updates of a chunk as one unit lower triangular system. State and arithmetic are fp32.
A token with beta = 0 and g = 0 changes nothing, exactly: that is how padding is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..config import BLOCK_SIZE
from .triangular import unit_lower_inverse

L2_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class StateCopy:
    """Copy the state of batch row `row` after chunk `chunk` (counted from 0) into `target` [heads, dk, dv]."""

    row: int
    chunk: int
    target: torch.Tensor


def l2norm(x: torch.Tensor) -> torch.Tensor:
    """x / sqrt(sum(x^2) + 1e-6) over the last dimension: the sum, not the mean, and the epsilon inside the root."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS)


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


def gated_delta_rule_chunked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
    lead: int = 0,
    copies: Sequence[StateCopy] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chunks of BLOCK_SIZE tokens, laid on absolute positions.

    Everything that does not need the state (the triangular solve and both applications of its inverse) is done for
    all chunks and heads at once; only three products a chunk are sequential.

    Args:
        q, k, v, g, beta: as in `gated_delta_rule_recurrent`; g and beta fp32 and zero where a row is padded.
        state: [batch, value_heads, dk, dv] fp32, not changed.
        lead: tokens of the first chunk that earlier calls have run, so that chunk boundaries fall on multiples of
            BLOCK_SIZE of the sequence whatever the cut.
        copies: states at chunk boundaries to copy out.
    Returns:
        (o [batch, tokens, value_heads, dv] fp32, final state fp32).
    """
    batch, tokens, key_heads, dk = k.shape
    value_heads, dv = v.shape[2:]
    share, size = value_heads // key_heads, BLOCK_SIZE
    chunks = -(-(lead + tokens) // size)

    def by_chunk(x: torch.Tensor, heads: tuple[int, ...]) -> torch.Tensor:
        """[batch, tokens, heads * n] -> [chunks, batch, *heads, size, n], padded with zeros at both ends."""
        tail = chunks * size - lead - tokens
        x = x.reshape(batch, tokens, -1)
        x = F.pad(x, (0, 0, lead, tail)) if lead or tail else x
        x = x.view(batch, chunks, size, *heads, -1)
        return x.permute(1, 0, *range(3, 3 + len(heads)), 2, 3 + len(heads)).contiguous()

    q = by_chunk(l2norm(q.float()), (key_heads,)) * dk**-0.5
    k = by_chunk(l2norm(k.float()), (key_heads,))
    v = by_chunk(v.float(), (key_heads, share))
    beta = by_chunk(beta, (key_heads, share)).squeeze(-1)
    decay = by_chunk(g, (key_heads, share)).squeeze(-1).cumsum(-1)  # G, [chunks, batch, key_heads, share, size]

    # The upper triangle of G_i - G_j is positive and reaches e^90: it is masked before the exponential, not after.
    upper = torch.ones(size, size, dtype=torch.bool, device=k.device).triu(1)
    relative = (decay.unsqueeze(-1) - decay.unsqueeze(-2)).masked_fill_(upper, -torch.inf).exp_()
    k_t = k.transpose(-1, -2)
    system = (k @ k_t).unsqueeze(3) * relative * beta.unsqueeze(-1)
    scores = relative.mul_((q @ k_t).unsqueeze(3))
    # Columns of T scaled once serve both applications: U = T (beta v), W = T (beta k e^G).
    inverse = unit_lower_inverse(system).mul_(beta.unsqueeze(-2))
    u = inverse @ v
    growth = decay.exp()
    w = (inverse.mul_(growth.unsqueeze(-2))).flatten(3, 4) @ k
    heads = batch * value_heads
    reads = torch.cat(
        (w.view(chunks, heads, size, dk), (q.unsqueeze(3) * growth.unsqueeze(-1)).view(chunks, heads, size, dk)), 2
    )
    last = decay[..., -1:]
    writes = (k.unsqueeze(3) * (last - decay).exp_().unsqueeze(-1)).view(chunks, heads, size, dk).transpose(-1, -2)
    u, keep = u.view(chunks, heads, size, dv), last.exp().view(chunks, heads, 1, 1)

    current = state.reshape(heads, dk, dv).clone()
    wanted: dict[int, list[StateCopy]] = {}
    for copy in copies:
        wanted.setdefault(copy.chunk, []).append(copy)
    from_state = torch.empty(chunks, heads, size, dv, device=k.device)
    for n in range(chunks):
        seen = torch.bmm(reads[n], current)
        u[n].sub_(seen[:, :size])  # V' = U - W S
        from_state[n] = seen[:, size:]
        current.mul_(keep[n]).baddbmm_(writes[n], u[n])
        for copy in wanted.get(n, ()):
            copy.target.copy_(current.view(batch, value_heads, dk, dv)[copy.row])
    out = torch.baddbmm(from_state.view(-1, size, dv), scores.view(-1, size, size), u.view(-1, size, dv))
    out = out.view(chunks, batch, value_heads, size, dv).permute(1, 0, 3, 2, 4).reshape(batch, -1, value_heads, dv)
    return out[:, lead : lead + tokens], current.view(batch, value_heads, dk, dv)


def gated_delta_rule_boundaries(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The chunked form on one row, with the state after every chunk, for graphs that choose among them by an input.

    Args:
        q, k, v, g, beta, state: as in `gated_delta_rule_chunked`, batch 1, tokens a multiple of BLOCK_SIZE.
    Returns:
        (o [1, tokens, value_heads, dv] fp32, states [chunks, value_heads, dk, dv] fp32, of which the last is final).
    """
    chunks = k.shape[1] // BLOCK_SIZE
    states = state.new_empty(chunks, *state.shape[1:])
    copies = [StateCopy(0, chunk, states[chunk]) for chunk in range(chunks)]
    out, _ = gated_delta_rule_chunked(q, k, v, g, beta, state, copies=copies)
    return out, states


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
    share = value_heads // k.shape[1]
    pair = l2norm(torch.stack((k, q), dim=2).float())  # [batch, key_heads, 2, dk]
    match = (pair[:, :, 0] * pair[:, :, 1]).sum(-1, keepdim=True)
    pair = pair.unsqueeze(2).expand(-1, -1, share, -1, -1).reshape(-1, 2, dk)
    match = match.unsqueeze(2).expand(-1, -1, share, -1).reshape(batch, value_heads, 1)
    decay = g.exp()
    flat = state.view(-1, dk, dv)
    read = torch.bmm(pair, flat).view(batch, value_heads, 2, dv) * decay[..., None, None]
    delta = (v.float() - read[:, :, 0]) * beta.unsqueeze(-1)
    flat.mul_(decay.view(-1, 1, 1)).addcmul_(pair[:, 0].unsqueeze(-1), delta.view(-1, 1, dv))
    return (read[:, :, 1] + match * delta) * dk**-0.5
