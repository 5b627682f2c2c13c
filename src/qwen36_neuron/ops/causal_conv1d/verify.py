"""The depthwise causal convolution with SiLU for a token and drafts behind it, a graph's form."""

from __future__ import annotations

import torch

from .static import causal_conv1d


def causal_conv1d_verify(
    x: torch.Tensor,
    window: torch.Tensor,
    pending: torch.Tensor,
    accepted: torch.Tensor,
    after: torch.Tensor,
    weight: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of a token that is certain and of drafts, behind the pending drafts that were accepted.

    Args:
        x: [batch, 1 + drafts, channels].
        window: [batch, K - 1, channels], before the pending drafts; weight as in `causal_conv1d`.
        pending: [batch, most drafts, channels], inputs of the drafts before; accepted: int [batch], of them.
        after: int [batch], tokens after which a window is wanted, accepted ones counted, at most accepted + 1.
    Returns:
        (y [batch, 1 + drafts, channels], the window after the certain token, the window after `after` tokens).
    """
    size, joined = window.shape[1], torch.cat((window, pending), dim=1)
    seen = _from(joined, accepted, size)
    left = torch.cat((seen, x[:, :1]), dim=1)[:, 1:]
    early = _from(joined, torch.minimum(after, accepted), size)
    kept = torch.where((after > accepted).view(-1, 1, 1), left, early)
    return causal_conv1d(x, seen, weight), left, kept


def _from(joined: torch.Tensor, first: torch.Tensor, size: int) -> torch.Tensor:
    """`size` inputs of each row from the given one on."""
    index = first.view(-1, 1).long() + torch.arange(size, device=joined.device)
    return joined.gather(1, index.unsqueeze(-1).expand(-1, -1, joined.shape[2]))
