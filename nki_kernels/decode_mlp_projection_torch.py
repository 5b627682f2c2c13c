"""Torch reference of `decode_mlp_projection`, and the order in which it reads the next projection's weights."""

import torch

from .decode_mlp_torch import TILE, decode_mlp_torch
from .decode_projection_torch import pack_columns, values_of


def pack_blocks(weight: torch.Tensor, cores: int) -> torch.Tensor:
    """[channels, hidden], a rank's: `pack_columns` with hidden channel 128 n + p on partition p of line n.

    Raises:
        ValueError: a size that does not divide.
    """
    channels, hidden = weight.shape
    if hidden % TILE:
        raise ValueError(f"hidden size {hidden} must be a multiple of {TILE}")
    return pack_columns(weight.reshape(channels, -1, TILE).transpose(1, 2).reshape(channels, hidden), cores)


def pack_gamma_blocks(weight: torch.Tensor) -> torch.Tensor:
    """A norm's full factor [hidden] as [128, hidden / 128]: channel 128 n + p on partition p of line n."""
    return weight.float().reshape(-1, TILE).T.contiguous()


def decode_mlp_projection_torch(
    x: torch.Tensor,
    gamma: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    next_gamma: torch.Tensor,
    into: torch.Tensor,
    gate_up_scale: torch.Tensor | None = None,
    down_scale: torch.Tensor | None = None,
    into_scale: torch.Tensor | None = None,
    eps: float = 1e-6,
    few: torch.Tensor | None = None,
    has_few: bool = False,
) -> tuple[torch.Tensor, ...]:
    """See `decode_mlp_projection`, of one rank: fp32."""
    y = decode_mlp_torch(x, gamma, gate_up, down, gate_up_scale, down_scale, 1, eps)
    given = [(into, into_scale)] if few is None or not has_few else [(into, into_scale), (few, None)]
    return y, *(next_projection(y.to(x.dtype), next_gamma, w, s, eps) for w, s in given)


def next_projection(
    y: torch.Tensor, gamma: torch.Tensor, into: torch.Tensor, scale: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """The second part alone, of a residual that all ranks have: fp32 [rows, channels]."""
    wide, cores, lines = y.float(), into.shape[0], gamma.shape[1]
    normed = wide * gamma.T.reshape(-1) * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    weight = values_of(into).reshape(cores, TILE, lines, -1).permute(2, 1, 0, 3).reshape(TILE * lines, -1)
    return normed.to(torch.bfloat16).float() @ weight * (1.0 if scale is None else scale.reshape(-1))
