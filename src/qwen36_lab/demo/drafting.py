"""How many tokens a step speculation would give: the trained layer's drafts against the model's own choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qwen36_neuron.config import BLOCK_SIZE

from .trainable import Assembled


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Counts over one reply.

    Attributes:
        steps: times the model was run.
        tokens: tokens those steps gave: in each, the accepted drafts and the model's own next token.
    """

    steps: int
    tokens: int


def acceptance(network: Assembled, prompt: Sequence[int], reply: Sequence[int], drafts: int) -> Acceptance:
    """Replay a greedy reply with `drafts` drafted tokens a step, counting those that would have been accepted.

    The first token of the reply comes from the prefill. Then each step runs the newest token and the drafts; drafts
    are accepted up to the first that is not the model's own choice, which replaces it. As every accepted token is the
    model's choice, the text is `reply` whatever is drafted, and its hidden states are those of one pass over it.

    Args:
        prompt: token ids.
        reply: greedy continuation of `prompt`, one token at least.
    """
    tokens = list(prompt) + list(reply)
    hidden = _padded(network, tokens, None)
    steps = given = 0
    known = len(prompt) + 1
    while known < len(tokens):
        guesses = draft(network, hidden[: known - 1], tokens[:known], drafts)
        rest = tokens[known:]
        right = 0
        while right < min(drafts, len(rest) - 1) and guesses[right] == rest[right]:
            right += 1
        steps, given, known = steps + 1, given + right + 1, known + right + 1
    return Acceptance(steps, given)


def draft(network: Assembled, hidden: Tensor, tokens: Sequence[int], count: int) -> list[int]:
    """`count` tokens after `tokens`, each from the draft layer's hidden state of the one before.

    Args:
        hidden: [len(tokens) - 1, hidden_size], the model's final-norm states at all tokens but the newest.
    """
    tokens = list(tokens)
    for _ in range(count):
        last = _padded(network, tokens[1:], hidden)[-1:]
        tokens.append(int(network.logits(last).argmax(-1)))
        hidden = torch.cat((hidden, last))
    return tokens[-count:]


def _padded(network: Assembled, tokens: Sequence[int], hidden: Tensor | None) -> Tensor:
    """States of `tokens` by the model, or with `hidden` by the draft layer, run at a whole number of chunks."""
    device, count = network.head.device, len(tokens)
    padding = -count % BLOCK_SIZE
    ids = F.pad(torch.tensor([list(tokens)], device=device), (0, padding))
    with torch.no_grad():
        if hidden is None:
            return network.hidden(ids)[0, :count]
        return network.draft_hidden(F.pad(hidden, (0, 0, 0, padding)).unsqueeze(0), ids)[0, :count]
