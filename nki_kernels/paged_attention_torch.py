"""Torch reference of `paged_attention`: same arguments, same result."""

import torch


def paged_attention_torch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    table: torch.Tensor,
    start: torch.Tensor,
    begin: int = 0,
) -> torch.Tensor:
    """See `paged_attention`."""
    tokens, heads, size = q.shape[1:]
    if k_cache.dtype == torch.uint8:
        k_cache, v_cache = k_cache.view(torch.float8_e4m3fn), v_cache.view(torch.float8_e4m3fn)
    out = []
    for b, held in enumerate(start[0].tolist()):
        keys, values = (
            torch.cat((cache[table[b].long()].flatten(0, 1)[:held].to(new.dtype), new[b])).float()
            for cache, new in ((k_cache, k), (v_cache, v))
        )
        share = heads // keys.shape[1]
        keys, values = (x.repeat_interleave(share, dim=1) for x in (keys, values))
        scores = torch.einsum("ihd,jhd->hij", q[b].float(), keys) * size**-0.5
        seen = torch.ones(tokens, held + tokens, dtype=torch.bool).tril(held)
        seen[:, : min(begin, held)] = False
        out.append(torch.einsum("hij,jhd->ihd", scores.masked_fill(~seen, -torch.inf).softmax(-1), values))
    return torch.stack(out).to(q.dtype)
