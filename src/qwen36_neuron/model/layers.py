"""The choice of linear and embedding layers that a block is built from.

A block names the whole sizes and which side is split; a factory gives the layer of one rank. On CPU a rank's layers
are plain torch; on a device NxD's column- and row-parallel layers take the same arguments.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from ..ops.moe import experts


class LayerFactory(Protocol):
    """Layers of one tensor-parallel rank. Weights arrive arranged so that a contiguous slice is a rank's share."""

    tp: int

    def column(self, in_features: int, out_features: int) -> nn.Module:
        """Linear layer whose outputs are split over the ranks; out_features is the total."""
        ...

    def row(self, in_features: int, out_features: int, summed: bool = True) -> nn.Module:
        """Linear layer whose inputs are split over the ranks; the partial results are summed over them.

        Args:
            summed: False leaves a rank's partial result as it is, for `total`.
        """
        ...

    def total(self, partial: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks of what each of them has."""
        ...

    def joined(self, in_features: int, out_features: int) -> nn.Module:
        """Linear layer whose outputs are split over the ranks and joined again: each rank has all of them."""
        ...

    def experts(self, count: int, hidden_size: int, intermediate_size: int) -> nn.Module:
        """The experts of a mixture, each split over its inner channels: a rank's partial result, for `total`.

        Called as `Experts` is, and with parameters of its names.
        """
        ...

    def embedding(self, vocab_size: int, hidden_size: int) -> nn.Module:
        """Token embedding split over the vocabulary."""
        ...

    def head(self, hidden_size: int, vocab_size: int) -> nn.Module:
        """Output projection split over the vocabulary; its result covers all of it."""
        ...


class Linear(nn.Module):
    """y = x W^T, without bias: no published Qwen3.6 projection has one."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)


class Experts(nn.Module):
    """The experts of a mixture: [count, 2 inner, hidden], gates before ups, and [count, hidden, inner]."""

    def __init__(self, count: int, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * intermediate_size, hidden_size), requires_grad=False)
        self.down_proj = nn.Parameter(torch.empty(count, hidden_size, intermediate_size), requires_grad=False)

    def forward(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """The weighted sum of what each token's experts make of it, [tokens, hidden] in and out.

        Args:
            weights: fp32 [tokens, top_k]; chosen: int64 [tokens, top_k]. See `ops.moe.route`.
        """
        return experts(x, self.gate_up_proj, self.down_proj, weights, chosen)


class Embedding(nn.Module):
    """Rows of the weight by token id."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size), requires_grad=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.embedding(tokens, self.weight)


class SingleRank:
    """The factory of an unsplit model."""

    tp = 1

    def column(self, in_features: int, out_features: int) -> nn.Module:
        return Linear(in_features, out_features)

    def row(self, in_features: int, out_features: int, summed: bool = True) -> nn.Module:
        return Linear(in_features, out_features)

    def total(self, partial: torch.Tensor) -> torch.Tensor:
        return partial

    def joined(self, in_features: int, out_features: int) -> nn.Module:
        return Linear(in_features, out_features)

    def experts(self, count: int, hidden_size: int, intermediate_size: int) -> nn.Module:
        return Experts(count, hidden_size, intermediate_size)

    def embedding(self, vocab_size: int, hidden_size: int) -> nn.Module:
        return Embedding(vocab_size, hidden_size)

    def head(self, hidden_size: int, vocab_size: int) -> nn.Module:
        return Linear(hidden_size, vocab_size)
