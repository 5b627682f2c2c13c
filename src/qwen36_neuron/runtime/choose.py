"""The token of a row, from its logits: what a device does in its graph, done on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec

import torch

from ..graph.sampling import parameter_tensor
from ..ops.sampling import sample_all
from ..step import Output, Row, Sampling

Draw = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def draw(logits: torch.Tensor, samplings: Sequence[Sampling | None]) -> list[int]:
    """One token a row; None asks for the most likely one. logits: fp32 [rows, vocab]."""
    return _best_form()(logits.contiguous(), parameter_tensor(samplings)).tolist()


def choose_tokens(rows: Sequence[Row], counts: Sequence[int], logits: torch.Tensor) -> list[int]:
    """The token at every place, as its row asks for tokens: 0 at those of rows that ask for none.

    A draft is right if it is the token that would be sampled in its place. So the tokens are those of a row without
    drafts, greedy and drawn, and not only as likely. All that are drawn are drawn in one call.

    Args:
        counts: places of each row in `logits`, one after the other.
        logits: fp32 [places, vocab].
    """
    asked = [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
    if all(row.sampling is None for row in rows):
        return logits.argmax(-1).tolist() if any(row.output is Output.TOKEN for row in rows) else [0] * len(asked)
    places = [place for count in counts for place in range(count)]
    wanted = [index for index, row in enumerate(asked) if row.output is Output.TOKEN]
    how = [asked[index].sampling for index in wanted]
    drawn = draw(
        logits if len(wanted) == len(asked) else logits[wanted],
        [each and each.at(places[index]) for index, each in zip(wanted, how, strict=True)],
    )
    found = [0] * len(asked)
    for index, token in zip(wanted, drawn, strict=True):
        found[index] = token
    return found


def verified(drafts: Sequence[int], tokens: Sequence[int]) -> tuple[int, ...]:
    """Of the tokens sampled in each draft's place and after the last, those up to the first that is not its draft."""
    right = 0
    while right < len(drafts) and drafts[right] == tokens[right]:
        right += 1
    return tuple(tokens[: right + 1])


@cache
def _best_form() -> Draw:
    """The compiled form where Numba is installed, else the definition; they give the same tokens."""
    if find_spec("numba") is None:
        return sample_all
    from ..ops.sampling.numba import draw_rows  # imported on use: a device's graphs need no Numba

    return draw_rows
