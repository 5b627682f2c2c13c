"""Torch reference of `gated_delta_rule_prefill`: same arguments, same results, fp32."""

import torch

from .gated_delta_rule_chunk_torch import gated_delta_rule_chunk_torch

CHUNK = 64


def gated_delta_rule_prefill_torch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
    valid: torch.Tensor,
    bank: torch.Tensor,
    slots: torch.Tensor,
    boundaries: tuple[int, ...] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `gated_delta_rule_prefill`; `bank` is written in place."""
    tokens, heads = g.shape
    position = torch.arange(tokens)
    live = ((position >= valid[0, 0]) & (position < valid[0, 1])).unsqueeze(-1)
    g, beta = g * live, beta * live
    share = heads // k.shape[1]
    q, k = q.repeat_interleave(share, dim=1), k.repeat_interleave(share, dim=1)
    q, k, v, g, beta = (x.transpose(0, 1) for x in (q, k, v, g.unsqueeze(-1), beta.unsqueeze(-1)))
    out = []
    for start in range(0, tokens, CHUNK):
        here = slice(start, start + CHUNK)
        o, state = gated_delta_rule_chunk_torch(q[:, here], k[:, here], v[:, here], g[:, here], beta[:, here], state)
        out.append(o)
        for n, boundary in enumerate(boundaries):
            if boundary * CHUNK == start + CHUNK:
                leave(bank, int(slots[0, n]), state)
    result = torch.cat(out, dim=1).transpose(0, 1).contiguous()
    leave(bank, int(slots[0, len(boundaries)]), state)
    return result, bank


def leave(bank: torch.Tensor, entry: int, state: torch.Tensor) -> None:
    """Write an entry, unless it is past the last one."""
    if 0 <= entry < bank.shape[0]:
        bank[entry] = state
