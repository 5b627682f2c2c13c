"""The gated delta rule by chunks, with static shapes: the form of a graph's prefill.

The chunked form (Yang et al., "Parallelizing Linear Transformers with the Delta Rule", and "Gated Delta Networks")
follows from writing the updates of a chunk as one unit lower triangular system. State and arithmetic are fp32.
"""

from __future__ import annotations

import torch

from ...config import BLOCK_SIZE
from .naive import l2norm
from .triangular import unit_lower_inverse


def gated_delta_rule_boundaries(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole chunks of BLOCK_SIZE tokens and the state after every chunk, for graphs that choose among them by an input.

    Everything that does not need the state (the triangular solve and both applications of its inverse) is done for
    all chunks and heads at once; only three products a chunk are sequential.

    Args:
        q, k, v: as in `gated_delta_rule_recurrent`, batch 1, tokens a multiple of BLOCK_SIZE.
        g, beta: fp32, zero where a row is padded.
        state: [1, value_heads, dk, dv] fp32, not changed.
    Returns:
        (o [1, tokens, value_heads, dv] fp32, states [chunks, value_heads, dk, dv] fp32, of which the last is final).
    """
    _, tokens, key_heads, dk = k.shape
    value_heads, dv = v.shape[2:]
    share, size = value_heads // key_heads, BLOCK_SIZE
    chunks = tokens // size

    def by_chunk(x: torch.Tensor, heads: tuple[int, ...]) -> torch.Tensor:
        """[1, tokens, heads * n] -> [chunks, *heads, size, n]."""
        x = x.reshape(chunks, size, *heads, -1)
        return x.permute(0, *range(2, 2 + len(heads)), 1, 2 + len(heads)).contiguous()

    q = by_chunk(l2norm(q.float()), (key_heads,)) * dk**-0.5
    k = by_chunk(l2norm(k.float()), (key_heads,))
    v = by_chunk(v.float(), (key_heads, share))
    beta = by_chunk(beta, (key_heads, share)).squeeze(-1)
    # G, [chunks, key_heads, share, size]: a running sum as a product, which a device has an engine for.
    up_to = torch.ones(size, size, device=k.device).triu()
    decay = by_chunk(g, (key_heads, share)).squeeze(-1) @ up_to

    # The upper triangle of G_i - G_j is positive and reaches e^90: it is masked before the exponential, not after.
    upper = torch.ones(size, size, dtype=torch.bool, device=k.device).triu(1)
    relative = (decay.unsqueeze(-1) - decay.unsqueeze(-2)).masked_fill(upper, -torch.inf).exp()
    k_t = k.transpose(-1, -2)
    system = (k @ k_t).unsqueeze(2) * relative * beta.unsqueeze(-1)
    scores = ((q @ k_t).unsqueeze(2) * relative).flatten(1, 2)
    # Columns of T scaled once serve both applications: U = T (beta v), W = T (beta k e^G).
    inverse = unit_lower_inverse(system) * beta.unsqueeze(-2)
    growth, last = decay.exp(), decay[..., -1:]
    u = (inverse @ v).flatten(1, 2)
    w = ((inverse * growth.unsqueeze(-2)) @ k.unsqueeze(2)).flatten(1, 2)
    reads = torch.cat((w, (q.unsqueeze(2) * growth.unsqueeze(-1)).flatten(1, 2)), dim=2)
    writes = (k.unsqueeze(2) * (last - decay).exp().unsqueeze(-1)).flatten(1, 2).transpose(-1, -2)
    keep = last.exp().view(chunks, value_heads, 1, 1)

    current, states, out = state[0], [], []
    for n in range(chunks):
        seen = torch.bmm(reads[n], current)
        update = u[n] - seen[:, :size]  # V' = U - W S
        current = current * keep[n] + torch.bmm(writes[n], update)
        out.append(seen[:, size:] + torch.bmm(scores[n], update))
        states.append(current)
    o = torch.stack(out).transpose(1, 2).reshape(1, tokens, value_heads, dv)
    return o, torch.stack(states)
