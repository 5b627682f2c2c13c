"""The token of a row, from its logits: what a device does in its graph, and what the host repeats where it must."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..ops.sampling import GREEDY, sample_all
from .step import Row, Sampling


def parameters(sampling: Sampling | None) -> tuple[float, ...]:
    """A row of sampling parameters in the order of `ops.sampling.COLUMNS`."""
    if sampling is None:
        return GREEDY
    return (sampling.temperature, float(sampling.top_k), sampling.top_p, sampling.min_p, sampling.uniform)


def parameter_tensor(samplings: Sequence[Sampling | None]) -> torch.Tensor:
    """fp32 [rows, columns]."""
    return torch.tensor([parameters(sampling) for sampling in samplings], dtype=torch.float32)


def choose(row: Row, logits: torch.Tensor, candidates: int) -> int:
    """The token that the row asks for. logits: fp32 [1, vocab]."""
    if row.sampling is None:
        return int(logits.argmax(-1))
    return int(sample_all(logits, parameter_tensor([row.sampling]), candidates))
