"""Torch reference of `causal_conv1d_verify`: same arguments, same results."""

import torch
import torch.nn.functional as F


def causal_conv1d_verify_torch(
    x: torch.Tensor,
    lanes: torch.Tensor,
    pending: torch.Tensor,
    weight: torch.Tensor,
    relations: torch.Tensor,
    held: torch.Tensor,
    places: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `causal_conv1d_verify`; `lanes` and `pending` are written in place."""
    (batch, tokens, channels), (past, taps) = x.shape, (lanes.shape[1], weight.shape[1])
    old, drafted = held[:, 0].long().split((batch * past, batch * pending.shape[1]))
    inputs = torch.cat((lanes.flatten(0, 1)[old], pending.flatten(0, 1)[drafted], x.flatten(0, 1))).float()
    found = relations.float().T @ inputs
    met, windows = found[: batch * tokens * taps], found[batch * tokens * taps :]
    y = F.silu((met.view(batch, tokens, taps, channels) * weight.float().T).sum(2)).to(x.dtype)
    write, keep = places[0].split((places.shape[1] - batch, batch))
    for place, window in zip(write.tolist(), windows.view(-1, past, channels), strict=True):
        if 0 <= place < len(lanes):
            lanes[place] = window.to(lanes.dtype)
    for place, drafts in zip(keep.tolist(), x[:, 1:], strict=True):
        if 0 <= place < len(pending):
            pending[place, : tokens - 1] = drafts
    return y, lanes, pending
