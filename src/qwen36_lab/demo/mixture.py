"""Training rows: one conversation each, as long as the row, from all the tasks in their shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from random import Random

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from . import recall, skills, structured, talk
from .chat import Conversation, Piece, Turn, opening, turn_pieces
from .filler import sentence

SYSTEMS = ("You are a helpful assistant.", "You are the demo model of qwen36-neuron.", "Answer briefly.", "Be precise.")
CONTEXT_WEIGHT = 0.05
"""Loss weight of text that is given; answers weigh 1."""
THINKING_SHARE = 0.5
RESERVE = 0.2
"""Share of a recall row that is left for questions after the first; at most RESERVE_TOKENS."""
RESERVE_TOKENS = 1200
CHARACTERS_PER_TOKEN = 4.67
"""Of plain prose; other texts have fewer, and one that leaves no room for its question is made again, shorter."""
MIN_FILL = 0.25
"""A row filled less than this is made again."""


@dataclass(frozen=True, slots=True)
class Shares:
    """How often a row is of each kind. `prose` is of all rows, the others share what is left."""

    recall: float
    structured: float
    chat: float
    prose: float


def turns(random: Random, shares: Shares, length: int, characters_per_token: float) -> Conversation:
    """A conversation without end: take as many turns as fit."""
    kind = random.choices(("recall", "structured", "chat"), (shares.recall, shares.structured, shares.chat))[0]
    system = random.choice(SYSTEMS) if random.random() < 0.15 else ""
    if kind == "recall":
        room = length - min(RESERVE * length, RESERVE_TOKENS) - 60
        characters = int(room * characters_per_token * (1.0 if random.random() < 0.7 else random.uniform(0.1, 1.0)))
        return Conversation(chain(recall.conversation(random, characters), _chat(random)), system)
    if kind == "structured":
        if random.random() < 0.3:
            return Conversation(_forms(random), system)
        names = structured.choose_tools(random)
        schemas = structured.tool_schemas(names, random)
        return Conversation(_tool_talk(random, names), system, schemas)
    return Conversation(_chat(random), system)


def _tool_talk(random: Random, names: Sequence[str]) -> Iterator[Turn]:
    while True:
        if random.random() < 0.8:
            yield from structured.tool_turns(random, names)
        else:
            yield random.choice((talk.turn, skills.turn))(random)


def _forms(random: Random) -> Iterator[Turn]:
    while True:
        yield (structured.json_turn if random.random() < 0.85 else structured.field_turn)(random)


def _chat(random: Random) -> Iterator[Turn]:
    while True:
        pick = random.random()
        if pick < 0.06:
            yield from talk.memory(random)
        elif pick < 0.5:
            yield skills.turn(random)
        elif pick < 0.9:
            yield talk.turn(random)
        else:
            yield structured.json_turn(random)


def prose(random: Random) -> Iterator[Piece]:
    """Plain text without a chat."""
    while True:
        yield Piece(" ".join(sentence(random) for _ in range(random.randint(2, 6))) + "\n\n", True)


class Rows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Batch i of a phase, the same on every machine and for any number of workers.

    An item is (tokens int32 [rows, length + 1], weights fp32 [rows, length + 1]): the loss weight of each token as a
    target. Rows end in padding of weight 0.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, shares: Shares, rows: int, length: int, batches: int, seed: str
    ) -> None:
        self.tokenizer, self.shares, self.seed = tokenizer, shares, seed
        self.rows, self.length, self.batches = rows, length, batches

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index >= self.batches:
            raise IndexError(index)
        random = Random(f"{self.seed}/{self.length}/{index}")
        tokens = np.full((self.rows, self.length + 1), self.tokenizer.pad_token_id, dtype=np.int32)
        weights = np.zeros((self.rows, self.length + 1), dtype=np.float32)
        for row in range(self.rows):
            ids, learned = self.row(random)
            tokens[row, : len(ids)] = ids
            weights[row, : len(ids)] = np.where(learned, 1.0, CONTEXT_WEIGHT)
        return torch.from_numpy(tokens), torch.from_numpy(weights)

    def row(self, random: Random) -> tuple[list[int], list[bool]]:
        """Token ids and which of them are learned, at most length + 1."""
        if random.random() < self.shares.prose:
            return self._fill((piece,) for piece in prose(random))
        characters_per_token = CHARACTERS_PER_TOKEN
        ids: list[int] = []
        while len(ids) < MIN_FILL * self.length:
            conversation = turns(random, self.shares, self.length, characters_per_token)
            ids, learned = self._fill(self._pieces(random, conversation))
            characters_per_token *= 0.8
        return ids, learned

    def _fill(self, groups: Iterable[Sequence[Piece]]) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        learned: list[bool] = []
        for group in groups:
            encoded = self.tokenizer.backend_tokenizer.encode_batch([p.text for p in group], add_special_tokens=False)
            if len(ids) + sum(len(e.ids) for e in encoded) > self.length + 1:
                break
            for piece, encoding in zip(group, encoded, strict=True):
                ids += encoding.ids
                learned += [piece.learned] * len(encoding.ids)
        return ids, learned

    def _pieces(self, random: Random, conversation: Conversation) -> Iterator[Sequence[Piece]]:
        head = opening(conversation, self.tokenizer)
        if head:
            yield (Piece(head, False),)
        for turn in conversation.turns:
            thinks = random.random() < THINKING_SHARE
            yield tuple(turn_pieces(turn if thinks else replace(turn, reasoning="")))
