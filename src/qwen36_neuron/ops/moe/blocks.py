"""The index tensors of a prompt's routed experts, as the kernel `prefill_experts` takes them, in plain operations."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .static import BlockPlan, lay_out


class Blocks(NamedTuple):
    """All choices of all tokens in blocks of one expert each: `blocks` of `size` rows, enough for any routing.

    Attributes:
        experts: int32 [1, blocks], of each block; the number of experts for one that is not used.
        tokens: int32 [size, blocks], of each row; of padding the first.
        shares: fp32 [size, blocks], a choice's weight; of padding zero.
        places: int32 [tokens, top_k], the row of each choice: row size * b + s for row s of block b.
    """

    experts: torch.Tensor
    tokens: torch.Tensor
    shares: torch.Tensor
    places: torch.Tensor

    @classmethod
    def of(cls, weights: torch.Tensor, chosen: torch.Tensor, experts: int) -> Blocks:
        """Those of `BlockPlan` for weights fp32 and chosen int64, both [tokens, top_k]: see `route`."""
        plan = BlockPlan.of(len(chosen), experts, chosen.shape[1])
        which, places = lay_out(chosen, experts, plan)
        at = (places.flatten(),)
        number = torch.arange(len(chosen), device=chosen.device).unsqueeze(1).expand_as(chosen)
        tokens = torch.zeros(plan.rows, dtype=torch.int64, device=chosen.device).index_put(at, number.flatten())
        shares = torch.zeros(plan.rows, device=chosen.device).index_put(at, weights.float().flatten())
        by_row = (tokens.to(torch.int32), shares)
        tokens, shares = (rows.view(plan.blocks, plan.size).T.contiguous() for rows in by_row)
        return cls(which.to(torch.int32).unsqueeze(0), tokens, shares, places.to(torch.int32))
