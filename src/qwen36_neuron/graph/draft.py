"""The draft layer in graphs: those that run tokens write its keys and values as they go, one of its own drafts.

The layer's key and value at a position are of the hidden state before it and of its token. So a graph that runs tokens
can write all of theirs: the state before a row's first token is kept by its lane, or in the checkpoint it restores.
What comes after its last token is not known there; that entry is written by the next row, and by a draft before that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..model import Qwen36Model
from ..model.norm import RMSNorm
from ..model.state import select_tokens
from .state import GraphDecode, GraphDraft, GraphPrefill, GraphVerify

Running = GraphPrefill | GraphDecode | GraphVerify

Best = Callable[[torch.Tensor, RMSNorm], tuple[torch.Tensor, torch.Tensor]]
"""Of hidden states [batch, 1, hidden] before a norm the best tokens and their logits, int and fp32 [batch, 1]."""


def run_tokens(network: Qwen36Model, state: Running, last: torch.Tensor | None = None) -> torch.Tensor:
    """Run a call's tokens, and have the draft layer follow them, if the memory is one with it.

    Args:
        last: int [rows], places of the only tokens whose result is asked for.
    Returns:
        Hidden states before the final norm, [rows, tokens, hidden], or [rows, 1, hidden] with `last`. The draft layer
        is shown those of all tokens after it; without that layer the network's last one leaves out what `last` does not
        need.
    """
    tokens, every = state.step.tokens, last is None or bool(state.memory.hidden)
    x = network.residual(tokens, state.positions, state, None if every else last)
    _follow(network, state, x)
    return x if last is None or not every else select_tokens(x, last)


def _follow(network: Qwen36Model, state: Running, x: torch.Tensor) -> None:
    for layer in list(state.memory.hidden):
        hidden = network.norm(x)
        before = state.hidden_before(layer, hidden)
        network.store_for_drafts(before, state.step.tokens, state.positions - 1, state)
        state.keep_hidden(layer, hidden)


def make_drafts(network: Qwen36Model, state: GraphDraft, best: Best) -> tuple[torch.Tensor, torch.Tensor]:
    """Drafts of every row, int32 [batch, drafts], and their logits, fp32 of that shape.

    A draft goes on from the one before and from the layer's own result, which takes the place of a hidden state. Their
    entries are provisional: the row that runs the tokens writes them anew.
    """
    (layer,), norm = state.memory.hidden, network.draft_norm
    hidden, tokens = state.hidden_before(layer), state.step.tokens
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for place in range(state.step.wanted.shape[1]):
        state.place = place
        x = network.draft_residual(hidden, tokens, state.positions - 1, state)
        tokens, logits = best(x, norm)
        hidden = norm(x)
        found.append((tokens.to(torch.int32), logits))
    drafts, logits = (torch.cat(each, dim=1) for each in zip(*found, strict=True))
    return drafts, logits
