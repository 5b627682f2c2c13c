"""The draft layer in graphs: those that run tokens write its keys and values as they go, one of its own drafts.

The layer's key and value at a position are of the hidden state before it and of its token. So a graph that runs tokens
can write all of theirs: the state before a row's first token is kept by its lane, or in the checkpoint it restores.
What comes after its last token is not known there; that entry is written by the next row, and by a draft before that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..model import Qwen36Model
from .state import GraphDecode, GraphDraft, GraphPrefill, GraphVerify

Best = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Of hidden states [batch, 1, hidden] the most likely tokens and their logits, int and fp32 [batch, 1]."""


def follow(network: Qwen36Model, state: GraphPrefill | GraphDecode | GraphVerify, hidden: torch.Tensor) -> None:
    """Have the draft layer, if the memory is one with it, follow the tokens that have run.

    Args:
        hidden: of all of them, after the final norm.
    """
    for layer in list(state.memory.hidden):
        before = state.hidden_before(layer, hidden)
        network.store_for_drafts(before, state.step.tokens, state.positions - 1, state)
        state.keep_hidden(layer, hidden)


def make_drafts(network: Qwen36Model, state: GraphDraft, best: Best) -> tuple[torch.Tensor, torch.Tensor]:
    """Drafts of every row, int32 [batch, drafts], and their logits, fp32 of that shape.

    A draft goes on from the one before and from the layer's own result, which takes the place of a hidden state. Their
    entries are provisional: the row that runs the tokens writes them anew.
    """
    (layer,) = state.memory.hidden
    hidden, tokens = state.hidden_before(layer), state.step.tokens
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for place in range(state.step.wanted.shape[1]):
        state.place = place
        hidden = network.draft(hidden, tokens, state.positions - 1, state)
        tokens, logits = best(hidden)
        found.append((tokens.to(torch.int32), logits))
    drafts, logits = (torch.cat(each, dim=1) for each in zip(*found, strict=True))
    return drafts, logits
