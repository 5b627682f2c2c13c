"""How a core's part of the vocabulary is divided: what the decode head and its packing agree on."""

RUN = 8
"""Tokens side by side in a chunk: a run of 32 bytes of a row of logits, half of what is kept of a chunk."""
MOST = 64
"""Runs of a chunk at most: 512 columns."""
TOGETHER = 4
"""Chunks come in so many."""


def runs_of_chunks(own: int) -> list:
    """Runs of each chunk of a core's `own` tokens: run r is the (r // chunks)-th of chunk r % chunks.

    So no chunk has more than a run of neighbours: likely tokens are often neighbours, and of a chunk only the most
    likely few are kept.
    """
    runs, out = own // RUN, []
    chunks = (runs + MOST * TOGETHER - 1) // (MOST * TOGETHER) * TOGETHER
    for chunk in range(chunks):
        out.append((runs - chunk + chunks - 1) // chunks)
    return out
