"""The most likely tokens of a vocabulary that is split over the ranks.

Both forms give the same on every rank: `PlainScores` of a rank's logits, `SearchedScores` where a kernel has looked for
candidates among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from neuronx_distributed.parallel_layers.mappings import gather_from_tensor_model_parallel_region
from torch_neuronx.xla_impl.ops import Argmax, TopK

from ..ops.fused.nki import Searched

NO_TOKEN = float(1 << 24)
"""Above every token."""


class Scores(Protocol):
    """What a head found of each row."""

    def logits(self) -> torch.Tensor:
        """fp32 [rows, vocab]."""
        ...

    def best(self, logits: torch.Tensor) -> torch.Tensor:
        """int [rows], the most likely token, the first of equals. logits: as `logits` gave them."""
        ...

    def most_likely(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The most likely tokens and their logits, int32 and fp32 [rows], without gathering all logits."""
        ...

    def ranked(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Candidates, `count` or as many as there are: logits fp32, in descending order, and tokens int32, [rows, n].

        And fp32 [rows, 1] that no other token's logit is above, where they are not sure to be the most likely ones.
        """
        ...


@dataclass(frozen=True, slots=True)
class PlainScores:
    """Of a rank's logits, [rows, vocab / ranks]."""

    part: torch.Tensor
    ranks: int

    def logits(self) -> torch.Tensor:
        return gathered(self.part).float()

    def best(self, logits: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = Argmax.apply(logits, 1, False)  # Neuron's own: XLA's argmax is a slow pair reduction
        return found

    def most_likely(self) -> tuple[torch.Tensor, torch.Tensor]:
        return most_likely(self.part.float(), self.ranks)

    def ranked(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        return *candidates(self.part.float(), min(count, self.part.shape[1]), self.ranks), None


@dataclass(frozen=True, slots=True)
class SearchedScores:
    """Of a rank's logits among which candidates have been found; see `ops.fused.nki.Searched`."""

    found: Searched
    ranks: int

    def logits(self) -> torch.Tensor:
        return gathered(self.found.logits)

    def best(self, logits: torch.Tensor) -> torch.Tensor:
        return self.most_likely()[0]

    def most_likely(self) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, values = first_of_equals(self.found.ids, self.found.values)
        if self.ranks == 1:
            return tokens[:, 0], values[:, 0]
        tokens, values = first_of_equals(self._counted(gathered(tokens), 1), gathered(values))
        return tokens[:, 0], values[:, 0]

    def ranked(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        count = min(count, self.found.values.shape[1])
        values, places = TopK.apply(self.found.values, count, dim=1)
        tokens = self.found.ids.gather(1, places.long())
        if self.ranks == 1:
            return values, tokens, self.found.bound
        # Of the ranks' candidates those that come out are as sure as the least sure of the ranks.
        tokens = self._counted(gathered(tokens), count)
        values, chosen = TopK.apply(gathered(values), count, dim=1)
        return values, tokens.gather(1, chosen.long()), gathered(self.found.bound).amax(1, keepdim=True)

    def _counted(self, tokens: torch.Tensor, count: int) -> torch.Tensor:
        """Tokens [rows, ranks * count], which are counted from each rank's first, counted from the first of all."""
        offsets = torch.arange(self.ranks, device=tokens.device, dtype=torch.int32) * self.found.logits.shape[1]
        return (tokens.view(-1, self.ranks, count) + offsets.view(1, -1, 1)).flatten(1)


def first_of_equals(tokens: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of values [rows, n] and the lowest of its tokens: int32 and fp32 [rows, 1]."""
    top = values.amax(1, keepdim=True)
    numbers = tokens.float()  # exact below 2^24
    lowest = torch.where(values == top, numbers, torch.full_like(numbers, NO_TOKEN)).amin(1, keepdim=True)
    return lowest.to(torch.int32), top


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
