"""The token of a row, from its logits: what a device does in its graph, and what the host repeats where it must."""

from __future__ import annotations

import torch

from ..graph.sampling import parameter_tensor
from ..ops.sampling import sample_all
from ..step import Row


def choose(row: Row, logits: torch.Tensor, candidates: int) -> int:
    """The token that the row asks for. logits: fp32 [1, vocab]."""
    if row.sampling is None:
        return int(logits.argmax(-1))
    return int(sample_all(logits, parameter_tensor([row.sampling]), candidates))
