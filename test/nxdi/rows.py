"""The rows of the tensor-parallel run, for its ranks and for the test that knows the answers."""

from __future__ import annotations

from dataclasses import replace

from qwen36_neuron.graph.inputs import DraftRow
from qwen36_neuron.runtime import Commit, Row, Sampling


def rows(tokens: list[int]) -> list[Row]:
    """A prompt in chunks with a checkpoint, decode steps, and a second request from the checkpoint."""
    blocks = tuple(range(1, 9))
    cuts = [(0, 100), (100, 290), *((n, n + 1) for n in range(290, 300))]
    first = [
        Row("a", 1, tokens[start:end], start, blocks, commits=(Commit(128, 2),) if start == 100 else ())
        for start, end in cuts
    ]
    shared = (*blocks[:2], 9, 10)
    second = [Row("b", 2, tokens[128:200], 128, shared, restore=2), Row("b", 2, tokens[200:201], 200, shared)]
    return [replace(row, sampling=sampling(index)) for index, row in enumerate((*first, *second))]


def drafted(tokens: list[int]) -> list[tuple[Row, int, DraftRow]]:
    """The first request goes on with drafts: each row, how many of those before it takes in, what is drafted then."""
    blocks = tuple(range(1, 9))
    return [
        (
            Row("a", 1, tokens[300:301], 300, blocks, drafts=(*tokens[301:303], 7)),
            0,
            DraftRow(1, tokens[303], 303, 2, blocks, 3),
        ),
        (
            Row("a", 1, tokens[303:304], 303, blocks, drafts=tuple(tokens[304:306])),
            2,
            DraftRow(1, tokens[304], 304, 0, blocks, 3),
        ),
        (Row("a", 1, tokens[304:305], 304, blocks), 0, DraftRow(1, tokens[305], 305, 0, blocks, 3)),
    ]


def before_drafts(tokens: list[int]) -> list[DraftRow]:
    """What is drafted of both requests before that."""
    shared = (1, 2, 9, 10)
    return [DraftRow(1, tokens[300], 300, 0, range(1, 9), 3), DraftRow(2, tokens[201], 201, 0, shared, 3)]


DRAFTED_AFTER = (300, 201, 303, 304, 305)
"""Positions of the tokens that drafts follow, in the order in which they are made."""


def sampling(index: int) -> Sampling | None:
    """The most likely token of every third row; the others are drawn."""
    return Sampling(1.5, uniform=(index * 0.37) % 1.0, top_k=(0, 5, 50)[index % 3]) if index % 3 else None
