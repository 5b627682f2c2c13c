"""The most likely tokens of a vocabulary that is split over the ranks."""

from __future__ import annotations

import torch
from neuronx_distributed.parallel_layers.mappings import gather_from_tensor_model_parallel_region
from torch_neuronx.xla_impl.ops import Argmax, TopK


def gathered(part: torch.Tensor) -> torch.Tensor:
    """All ranks' parts of the last dimension, rank after rank."""
    return gather_from_tensor_model_parallel_region(part)


def most_likely(part: torch.Tensor, ranks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely token of each row, the first of equals, without gathering all logits.

    Args:
        part: fp32 [rows, vocab / ranks], this rank's logits.
    Returns:
        Tokens int32 and their logits fp32, [rows], the same on every rank.
    """
    places = Argmax.apply(part, 1, False).view(-1, 1)
    values = part.gather(1, places)
    if ranks == 1:
        return places[:, 0].to(torch.int32), values[:, 0]
    every = gathered(values)
    offsets = torch.arange(ranks, device=part.device, dtype=torch.int32) * part.shape[1]
    tokens = gathered(places.to(torch.int32)) + offsets.view(1, -1)
    best = Argmax.apply(every, 1, False).view(-1, 1)
    return tokens.gather(1, best)[:, 0], every.gather(1, best)[:, 0]


def candidates(part: torch.Tensor, count: int, ranks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` most likely tokens, in descending order: each rank's own first, then those of all of them.

    Args:
        part: fp32 [rows, vocab / ranks], this rank's logits.
        count: at most vocab / ranks, so that no rank can hold more of them than it gives.
        ranks: how many there are.
    Returns:
        Logits fp32 and tokens int32, [rows, count], the same on every rank.
    """
    # Neuron's own: XLA's is a sort of the whole vocabulary.
    values, places = TopK.apply(part, count, dim=1)
    places = places.to(torch.int32)
    if ranks == 1:
        return values, places
    offsets = torch.arange(ranks, device=part.device, dtype=torch.int32) * part.shape[1]
    tokens = gathered(places).view(-1, ranks, count) + offsets.view(1, -1, 1)
    values, chosen = TopK.apply(gathered(values), count, dim=1)
    return values, tokens.reshape(len(part), -1).gather(1, chosen.long())
