"""Torch references of `causal_conv1d` and `causal_conv1d_step`: same arguments, same results."""

import torch
import torch.nn.functional as F


def _convolve(joined: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[..., 3 + n, C] to [..., n, C]."""
    y = (joined.float().unfold(-2, weight.shape[1], 1) * weight.float()).sum(-1)
    return F.silu(y).to(dtype)


def causal_conv1d_torch(
    x: torch.Tensor, window: torch.Tensor, weight: torch.Tensor, valid: torch.Tensor, ends: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `causal_conv1d`."""
    past, first = window.shape[0], int(valid[0, 0])
    joined = torch.cat((x.new_zeros(first, x.shape[1]), window, x[first:]))
    y = _convolve(joined, weight, x.dtype)
    return y, torch.stack([joined[end : end + past] for end in ends[0].tolist()])


def causal_conv1d_step_torch(
    x: torch.Tensor, lanes: torch.Tensor, weight: torch.Tensor, read: torch.Tensor, write: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `causal_conv1d_step`; `lanes` is written in place."""
    joined = torch.cat((lanes[read[0].long()], x), dim=1)
    for b, tokens in enumerate(write.view(*x.shape[:2], -1).tolist()):
        for m, places in enumerate(tokens):
            for lane in places:
                if 0 <= lane < lanes.shape[0]:
                    lanes[lane] = joined[b, m + 1 : m + 1 + lanes.shape[1]]
    return _convolve(joined, weight, x.dtype), lanes
