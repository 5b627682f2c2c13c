"""The token of a row, from its logits: what a device does in its graph, done on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec

import torch

from ..graph.sampling import parameter_tensor
from ..ops.sampling import sample_all
from ..step import Row, Sampling

Draw = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def draw(logits: torch.Tensor, samplings: Sequence[Sampling | None]) -> list[int]:
    """One token a row; None asks for the most likely one. logits: fp32 [rows, vocab]."""
    return _best_form()(logits.contiguous(), parameter_tensor(samplings)).tolist()


def choose(row: Row, logits: torch.Tensor) -> int:
    """The token that the row asks for. logits: fp32 [1, vocab]."""
    return draw(logits, [row.sampling])[0]


@cache
def _best_form() -> Draw:
    """The compiled form where Numba is installed, else the definition; they give the same tokens."""
    if find_spec("numba") is None:
        return sample_all
    from ..ops.sampling.numba import draw_rows  # imported on use: a device's graphs need no Numba

    return draw_rows
