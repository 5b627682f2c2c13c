"""The depthwise causal convolution with SiLU as a graph runs it, and the window that it carries between calls."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def causal_conv1d(x: torch.Tensor, window: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """silu(sum_j weight[:, j] * x[t - K + 1 + j]), the past of the first token being the window.

    The taps over real tokens are added shifted, in place; only the first K - 1 tokens look into the window, so the
    input is never copied to be joined to it.

    Args:
        x: [batch, tokens, channels].
        window: [batch, K - 1, channels], the inputs before the first token, oldest first; zeros at position 0.
        weight: [channels, K], the last column for the token itself.
    Returns:
        [batch, tokens, channels].
    """
    kernel, tokens, taps = weight.shape[1], x.shape[1], weight.t()
    y = x * taps[kernel - 1]
    for back in range(1, kernel):
        tap = taps[kernel - 1 - back]
        if tokens > back:
            y[:, back:].addcmul_(x[:, : tokens - back], tap)
        seen = min(back, tokens)
        y[:, :seen].addcmul_(window[:, kernel - 1 - back : kernel - 1 - back + seen], tap)
    return F.silu(y, inplace=True)


def place_window(x: torch.Tensor, window: torch.Tensor, lead: torch.Tensor) -> torch.Tensor:
    """Inputs joined to the window right before each row's first real token, for rows that are padded on the left.

    Args:
        x: [batch, tokens, channels]; the first `lead[b]` tokens of row b are padding.
        window: [batch, K - 1, channels].
        lead: int [batch].
    Returns:
        [batch, K - 1 + tokens, channels]: index K - 1 + t is token t; what lies before the window has no meaning.
    """
    size = window.shape[1]
    joined = F.pad(x, (0, 0, size, 0))
    index = lead.view(-1, 1).long() + torch.arange(size, device=x.device)
    return joined.scatter(1, index.unsqueeze(-1).expand_as(window), window)


def windows_at(joined: torch.Tensor, ends: torch.Tensor, size: int) -> torch.Tensor:
    """Windows after given numbers of tokens, padding on the left counted, of the one row of `joined`.

    Args:
        joined: [1, size + tokens, channels], as `place_window` gives it.
        ends: int [n].
    Returns:
        [n, size, channels].
    """
    index = ends.view(-1, 1) + torch.arange(size, device=joined.device)
    return joined[0].index_select(0, index.reshape(-1)).view(-1, size, joined.shape[-1])
