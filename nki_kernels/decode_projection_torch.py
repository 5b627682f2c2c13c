"""Torch reference of the decode projections, and the order in which they read their weights."""

import torch
import torch.nn.functional as F

from .fp8_mlp_torch import decode_e4m3

TILE = 128


def pack_columns(weight: torch.Tensor, cores: int) -> torch.Tensor:
    """[channels, hidden], a rank's, as `norm_projection` reads it: [cores, 128, hidden / 128 * channels / cores].

    Raises:
        ValueError: a size that does not divide.
    """
    channels, hidden = weight.shape
    if channels % cores or hidden % TILE:
        raise ValueError(f"{channels} channels must divide among {cores} cores, hidden size {hidden} by {TILE}")
    # [cores, own, 128, lines] -> [cores, 128, lines, own]
    return weight.reshape(cores, channels // cores, TILE, -1).permute(0, 2, 3, 1).reshape(cores, TILE, -1).contiguous()


def by_input(packed: torch.Tensor, inputs: int) -> torch.Tensor:
    """What `pack_columns` gives as [hidden, channels]: a core's part [128, hidden / 128 * n] lies as [hidden, n] does.

    Args:
        inputs: hidden size; of what `pack_rows` gives its channels, which come out as [128, heads] of them.
    """
    return torch.cat([part.reshape(inputs, -1) for part in packed], dim=1)


def pack_rows(weight: torch.Tensor, cores: int) -> torch.Tensor:
    """[hidden, channels], a rank's, as `gated_norm_projection` reads it: [cores, 128, channels / 128 * hidden / cores].

    Raises:
        ValueError: a size that does not divide.
    """
    hidden, channels = weight.shape
    if hidden % cores or channels % TILE:
        raise ValueError(f"hidden size {hidden} must divide among {cores} cores, {channels} channels by {TILE}")
    # [cores, own, heads, 128] -> [cores, 128, heads, own]
    return weight.reshape(cores, hidden // cores, -1, TILE).permute(0, 3, 2, 1).reshape(cores, TILE, -1).contiguous()


def norm_projection_torch(
    x: torch.Tensor,
    gamma: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    eps: float = 1e-6,
    few: torch.Tensor | None = None,
    has_few: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """See `norm_projection`: fp32."""
    wide = x.float()
    normed = wide * gamma.reshape(-1) * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    rounded = normed.to(torch.bfloat16).float()
    y = rounded @ by_input(values_of(weight), x.shape[1]) * (1.0 if scale is None else scale.reshape(-1))
    return y if few is None or not has_few else (y, rounded @ by_input(few.float(), x.shape[1]))


def gated_norm_projection_torch(
    x: torch.Tensor,
    mixed: torch.Tensor,
    gate: torch.Tensor,
    factor: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    ranks: int = 1,
    eps: float = 1e-6,
) -> torch.Tensor:
    """See `gated_norm_projection`: what this rank brings to the sum over ranks, fp32 [rows, hidden]."""
    rows, heads, size = mixed.shape
    normed = mixed * torch.rsqrt(mixed.square().mean(-1, keepdim=True) + eps) * (factor[0] * F.silu(gate.float()))
    lines = normed.to(torch.bfloat16).float().transpose(1, 2).reshape(rows, -1)
    out = lines @ by_input(values_of(weight), heads * size)
    return out * (1.0 if scale is None else scale.reshape(-1)) + x.float() / ranks


def values_of(weight: torch.Tensor) -> torch.Tensor:
    """What packed weights are worth but for their scales, fp32."""
    if weight.dtype != torch.uint8:
        return weight.float()
    return decode_e4m3(torch.arange(256).to(torch.uint8))[weight.int()]
