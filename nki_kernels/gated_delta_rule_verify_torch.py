"""Torch reference of `gated_delta_rule_verify`: same arguments, same results, fp32."""

import torch

L2_EPS = 1e-6


def gated_delta_rule_verify_torch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    states: torch.Tensor,
    pending: torch.Tensor,
    relations: torch.Tensor,
    places: torch.Tensor,
    held: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `gated_delta_rule_verify`; `states` and `pending` are written in place."""
    (batch, tokens), size, share = q.shape[:2], q.shape[3], v.shape[2] // k.shape[2]
    q, k, v = q.float(), k.float(), v.float()
    q = q * torch.rsqrt(size * (q.square().sum(-1, keepdim=True) + L2_EPS))
    k = k * torch.rsqrt(k.square().sum(-1, keepdim=True) + L2_EPS)
    checks = (places.shape[1] - 3 * batch) // 2
    read, write, keep = places[0].split((batch + checks, batch + checks, batch))
    rows = pending.flatten(0, 1)[held[:, 0].long()].view(batch + checks, -1, *pending.shape[2:])
    first = relations[: batch * tokens : tokens, pending.shape[1] + 2 * tokens + 1 + batch :]
    out, left, factors = [], [], []
    for at, state in enumerate(states[read.long()]):
        for key, delta, gate in (_factors(row, size, share) for row in rows[at]):
            state = state * gate[:, None, None].exp() + key[:, :, None] * delta[:, None, :]
        b = at if at < batch else int(first[:, at - batch].argmax())
        if at >= batch and not first[b, at - batch]:
            left.append(state)
            continue
        for t in range(tokens if at < batch else 1):
            key, query = (x[b, t].repeat_interleave(share, dim=0) for x in (k, q))
            state = state * g[b, t, :, None, None].exp()
            delta = (v[b, t] - torch.einsum("hkv,hk->hv", state, key)) * beta[b, t, :, None]
            state = state + key[:, :, None] * delta[:, None, :]
            if t == 0:
                left.append(state)
            if at < batch:
                out.append(torch.einsum("hkv,hk->hv", state, query))
                factors.append(_record(k[b, t], delta, g[b, t]))
    for place, state in zip(write.tolist(), left, strict=True):
        if 0 <= place < len(states):
            states[place] = state
    made = torch.stack(factors).view(batch, tokens, *pending.shape[2:])
    for place, drafts in zip(keep.tolist(), made[:, 1:], strict=True):
        if 0 <= place < len(pending):
            pending[place, : tokens - 1] = drafts
    return torch.stack(out).view(v.shape), states, pending


def _factors(row: torch.Tensor, size: int, share: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Key and delta [H, D] and gate [H] of a record [HK, D + share * (D + 1)]."""
    key, delta, gate = row.split((size, share * size, share), dim=1)
    return key.repeat_interleave(share, dim=0), delta.reshape(-1, size), gate.reshape(-1)


def _record(key: torch.Tensor, delta: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    heads = key.shape[0]
    return torch.cat((key, delta.view(heads, -1), gate.view(heads, -1)), dim=1)
