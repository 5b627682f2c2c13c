"""The rows of the tensor-parallel run, for its ranks and for the test that knows the answers."""

from __future__ import annotations

from dataclasses import replace

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


def drafted(tokens: list[int]) -> list[tuple[Row, int]]:
    """The first request goes on with drafts, and how many of those before each row takes in."""
    blocks = tuple(range(1, 9))
    return [
        (Row("a", 1, tokens[300:301], 300, blocks, drafts=(*tokens[301:303], 7)), 0),
        (Row("a", 1, tokens[303:304], 303, blocks, drafts=tuple(tokens[304:306])), 2),
        (Row("a", 1, tokens[304:305], 304, blocks), 0),
    ]


def sampling(index: int) -> Sampling | None:
    """The most likely token of every third row; the others are drawn."""
    return Sampling(1.5, uniform=(index * 0.37) % 1.0, top_k=(0, 5, 50)[index % 3]) if index % 3 else None
