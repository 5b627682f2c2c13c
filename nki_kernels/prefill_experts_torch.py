"""Torch reference of `prefill_experts`."""

import torch
import torch.nn.functional as F

from .decode_experts_torch import TILE, unpack_experts


def prefill_experts_torch(
    x: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    tokens: torch.Tensor,
    shares: torch.Tensor,
    places: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `prefill_experts`; rows of blocks that are not used are zero."""
    lines, (size, blocks) = x.shape[1] // TILE, tokens.shape
    gate, up, down = unpack_experts(weights, lines)
    made = torch.zeros(blocks, size, x.shape[1])
    for block, expert in enumerate(experts[0].tolist()):
        if expert < len(gate):
            rows = x[tokens[:, block].long()].float()
            h = F.silu(rows @ gate[expert].T) * (rows @ up[expert].T)
            made[block] = (h.to(torch.bfloat16).float() @ down[expert].T) * shares[:, block : block + 1]
    rounded = made.flatten(0, 1).to(torch.bfloat16)
    y = rounded[places.long()].float().sum(1)
    return y, rounded.view(-1, TILE, lines).transpose(1, 2).flatten(1)
