"""The routed experts with static shapes, of plain operations: what a graph of any routing can be.

The choices of all tokens are laid out in blocks of one expert each: an expert's tokens are as many whole blocks as they
fill, the last one padded. How many blocks there are at most is known from the numbers of tokens and experts alone, so
none is ever left out, even if all tokens choose the same expert. A block gathers its expert's weights. With blocks of
one token, which decode steps have, a choice is a block and nothing is padded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..mlp import swiglu

LARGEST_BLOCK = 128
"""Tokens that TensorE has in its columns while a tile of weights stays."""

GATHERED_BYTES = 128 << 20
"""Of weights at once: what a run of blocks has gathered, beside the weights themselves."""


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """How the choices of a call are laid out.

    Attributes:
        size: tokens of a block. blocks: how many there are, enough for any routing.
    """

    size: int
    blocks: int

    @classmethod
    def of(cls, tokens: int, experts: int, top_k: int) -> BlockPlan:
        """The layout of a call.

        One token a block while there are no more choices than experts. Else the least power of two that is twice the
        choices of an average expert or more, LARGEST_BLOCK at most. Up to that there are 1.5 times as many blocks as
        experts at most, whose weights are what a call moves, and 5 times as many rows as choices, 3 where the average
        is a power of two; beyond it two blocks a 128 choices, and half of the rows padding at most.
        """
        choices = tokens * top_k
        size = 1
        if choices > experts:
            while size < LARGEST_BLOCK and size * experts < 2 * choices:
                size *= 2
        size = min(size, tokens)  # an expert has a token once at most
        used = min(experts, choices)
        return cls(size, used + (choices - used) // size)

    @property
    def rows(self) -> int:
        """That are multiplied, padding counted."""
        return self.size * self.blocks


@dataclass(frozen=True, slots=True)
class Stack:
    """A matrix of each expert.

    Attributes:
        weight: [experts, out, in], of a floating-point type or FP8 codes.
        scale: fp32 [experts, out, 1], of codes; None without.
    """

    weight: torch.Tensor
    scale: torch.Tensor | None = None

    def product(self, x: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        """x [blocks, tokens, in] by the matrices of the experts `of` int64 [blocks]: [blocks, tokens, out] of x's type.

        A scale multiplies the product, in fp32.
        """
        weight = self.weight.index_select(0, of)
        found = torch.bmm(x, weight.to(x.dtype).transpose(1, 2))
        if self.scale is None:
            return found
        return (found.float() * self.scale.index_select(0, of).transpose(1, 2)).to(x.dtype)


def static_experts(
    x: torch.Tensor, gate_up: Stack, down: Stack, weights: torch.Tensor, chosen: torch.Tensor
) -> torch.Tensor:
    """The weighted sum of what its experts make of each token, as `naive.experts`, of shapes known beforehand.

    Args:
        x: [tokens, hidden].
        gate_up: [experts, 2 inner, hidden], gates before ups; down: [experts, hidden, inner].
        weights: fp32 [tokens, top_k]; chosen: int64 [tokens, top_k], different experts in a row. See `naive.route`.
    Returns:
        fp32 [tokens, hidden].
    """
    experts = len(gate_up.weight)
    plan = BlockPlan.of(len(x), experts, chosen.shape[1])
    if plan.size == 1:
        of, place = chosen.flatten(), None
        rows = x.repeat_interleave(chosen.shape[1], 0)
    else:
        of, place = lay_out(chosen, experts, plan)
        of = of.clamp_max(experts - 1)
        rows = x.index_select(0, _tokens_of(place, plan))
    blocks = rows.view(plan.blocks, plan.size, x.shape[1])
    each = gate_up.weight.shape[1:].numel() + down.weight.shape[1:].numel()
    step = max(1, GATHERED_BYTES // (each * gate_up.weight.element_size()))
    made = []
    for first in range(0, plan.blocks, step):  # slices: torch_xla crashes on a piece of a split that is an index
        some, which = blocks[first : first + step], of[first : first + step]
        made.append(down.product(swiglu(gate_up.product(some, which)), which))
    found = torch.cat(made).flatten(0, 1)
    if place is not None:
        found = found.index_select(0, place.flatten())
    return (found.view(*chosen.shape, -1).float() * weights.unsqueeze(-1)).sum(1)


def lay_out(chosen: torch.Tensor, experts: int, plan: BlockPlan) -> tuple[torch.Tensor, torch.Tensor]:
    """The expert of each block, int64 [blocks], and the row of each choice, int64 [tokens, top_k].

    Blocks that are used come first; the others have the number of experts for one.

    Sums are products with triangles of ones in fp32, exact up to 2^24 choices: a device has no scan of its own.
    """
    tokens = len(chosen)
    every = torch.arange(experts, device=chosen.device)
    has = (chosen.unsqueeze(-1) == every).any(1).float()  # [tokens, experts]
    before = _earlier(tokens, chosen.device) @ has  # of an expert's tokens, those that come earlier
    filled = ((has.sum(0) + (plan.size - 1)) / plan.size).floor()  # blocks of each expert
    first = _earlier(experts, chosen.device) @ filled
    last = (first + filled).unsqueeze(1)
    of = (last <= torch.arange(plan.blocks, device=chosen.device)).sum(0)
    place = first[chosen] * plan.size + before.gather(1, chosen)
    return of, place.long()


def _earlier(count: int, device: torch.device) -> torch.Tensor:
    """fp32 [count, count]: 1 where the column comes before the row."""
    index = torch.arange(count, device=device)
    return (index.unsqueeze(1) > index).float()


def _tokens_of(place: torch.Tensor, plan: BlockPlan) -> torch.Tensor:
    """The token of each row, int64 [rows]; that of padding is token 0, whose result there nobody asks for."""
    tokens = torch.arange(len(place), device=place.device).unsqueeze(1).expand_as(place)
    none = torch.zeros(plan.rows, dtype=torch.int64, device=place.device)
    return none.index_put((place.flatten(),), tokens.flatten())
