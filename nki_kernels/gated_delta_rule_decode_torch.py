"""Torch reference of `gated_delta_rule_decode`: same arguments, same results, fp32."""

import torch

L2_EPS = 1e-6


def gated_delta_rule_decode_torch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    lanes: torch.Tensor,
    read: torch.Tensor,
    write: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `gated_delta_rule_decode`; `lanes` is written in place."""
    q, k, v = q.float(), k.float(), v.float()
    share = v.shape[2] // k.shape[2]
    q = q * torch.rsqrt(q.shape[-1] * (q.square().sum(-1, keepdim=True) + L2_EPS))
    k = k * torch.rsqrt(k.square().sum(-1, keepdim=True) + L2_EPS)
    q, k = q.repeat_interleave(share, dim=2), k.repeat_interleave(share, dim=2)
    state, out = lanes[read[0].long()], []
    for m in range(q.shape[1]):
        state = state * g[:, m, :, None, None].exp()
        delta = (v[:, m] - torch.einsum("bhkv,bhk->bhv", state, k[:, m])) * beta[:, m, :, None]
        state = state + k[:, m, :, :, None] * delta[:, :, None, :]
        out.append(torch.einsum("bhkv,bhk->bhv", state, q[:, m]))
        for b, places in enumerate(write.view(*q.shape[:2], -1)[:, m].tolist()):
            for lane in places:
                if 0 <= lane < lanes.shape[0]:
                    lanes[lane] = state[b]
    return torch.stack(out, dim=1), lanes
