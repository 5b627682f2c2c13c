"""Sampling parameters of rows as the tensor that a graph takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..ops.sampling import GREEDY
from ..step import Sampling


def parameters(sampling: Sampling | None) -> tuple[float, ...]:
    """A row of sampling parameters in the order of `ops.sampling.COLUMNS`."""
    if sampling is None:
        return GREEDY
    return (sampling.temperature, float(sampling.top_k), sampling.top_p, sampling.min_p, sampling.uniform)


def parameter_tensor(samplings: Sequence[Sampling | None]) -> torch.Tensor:
    """fp32 [rows, columns]."""
    return torch.tensor([parameters(sampling) for sampling in samplings], dtype=torch.float32)
