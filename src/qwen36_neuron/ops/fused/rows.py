"""Where the rows of a step are in the paged memory, for a kernel that has all of an attention layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class PagedRows:
    """As many new tokens of every row, of one layer. All indices are int32.

    Attributes:
        cache: keys and values, [blocks, BLOCK_SIZE, kv_heads, head_dim] each.
        table: [rows, named blocks], of each row in order.
        held: [rows], tokens that the cache holds of each.
        places: [rows * tokens, 1], where the new tokens' keys and values go, counted through the blocks; past the last
            place for a token of which nothing is kept.
    """

    cache: tuple[torch.Tensor, torch.Tensor]
    table: torch.Tensor
    held: torch.Tensor
    places: torch.Tensor
