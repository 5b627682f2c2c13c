"""Plain operations on weights in the order of the fused kernels, so that prompts need no second copy of them.

The order is made for a stream of 128 partitions, and as it lies it is a matrix, inputs first: of a projection a core's
part, of a feed-forward block each part of its channels. So weights are sliced here and never turned; of activations,
those that go into the down projection are put in order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from nki_kernels.decode_mlp_plan import TILE, parts
from nki_kernels.decode_mlp_torch import PackedMlp


def columns(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """A projection from the hidden size.

    Args:
        x: [..., hidden], bfloat16.
        weight: bfloat16, or uint8 codes of at most 240, [cores, 128, hidden / 128 * channels / cores].
        scale: fp32 [cores, channels / cores], with codes only.
    Returns:
        [..., channels], of x's type.
    """
    return _cores(x, weight, scale)


def rows(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """A projection from heads of 128 channels: x [..., heads * 128], weight [cores, 128, heads * hidden / cores]."""
    return _cores(x.unflatten(-1, (-1, TILE)).transpose(-1, -2).flatten(-2), weight, scale)


def swiglu(x: torch.Tensor, weights: PackedMlp) -> torch.Tensor:
    """The feed-forward block of one rank.

    Args:
        x: [..., hidden], bfloat16.
    Returns:
        [..., hidden], of x's type: what the rank brings to the sum over ranks.
    """
    given = x.reshape(-1, x.shape[-1])
    cores, lines = len(weights.gate_up), given.shape[1] // TILE
    plan = parts(weights.gate_up.shape[2] // (2 * TILE * lines))
    h = [_gated(given, weights, core, plan) for core in range(cores)]
    brought = []
    for core in range(cores):
        # Blocks of a part in the order in which the core reads them, its own before the other's: [rows, blocks, 128].
        read = torch.cat([h[who][at] for at in range(len(plan)) for who in (core, 1 - core)[:cores]], dim=1)
        y = read.transpose(1, 2).flatten(1) @ _values(weights.down[core].view(read.shape[1] * TILE, -1), x.dtype)
        brought.append(y if weights.down_scale is None else (y * weights.down_scale[core]).to(x.dtype))
    return torch.cat(brought, dim=1).view(x.shape)


def _gated(x: torch.Tensor, weights: PackedMlp, core: int, plan: list[tuple[int, int]]) -> list[torch.Tensor]:
    """A core's silu(gate) * up, a part after the other: [rows, blocks, 128], a block of each chunk in turn."""
    out, at, block = [], 0, 0
    for chunks, width in plan:
        count = chunks * width
        size = x.shape[1] // TILE * 2 * count * TILE
        both = x @ _values(weights.gate_up[core, :, at : at + size].reshape(x.shape[1], -1), x.dtype)
        both = both.view(len(x), 2, chunks, width, TILE).transpose(2, 3)
        if weights.gate_up_scale is not None:
            scale = weights.gate_up_scale[core, :, block : block + 2 * count]
            both = (both * scale.t().reshape(2, width, chunks, TILE)).to(x.dtype)
        out.append((F.silu(both[:, 0]) * both[:, 1]).reshape(len(x), count, TILE))
        at, block = at + size, block + 2 * count
    return out


def _cores(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    parts_of = [x @ _values(part.view(x.shape[-1], -1), x.dtype) for part in weight]
    y = torch.cat(parts_of, dim=-1)
    return y if scale is None else (y * scale.view(-1)).to(x.dtype)


def _values(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Numbers that multiply, without their scales."""
    return weight if weight.dtype is not torch.uint8 else weight.view(torch.float8_e4m3fn).to(dtype)
