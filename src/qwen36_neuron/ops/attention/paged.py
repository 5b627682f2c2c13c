"""Grouped-query attention over paged keys and values.

The cache of a layer is one flat buffer, [positions, kv_heads, head_dim]; a block is BLOCK_SIZE positions in a row. A
sequence whose blocks are neighbours is read in place, without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...config import BLOCK_SIZE
from ..fp8 import replace_rows_in_place

SEGMENT = 1 << 15
"""Tokens held before that are read at once."""

Read = Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of tokens from the first one to before the second."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""Its scores are held a tile at a time."""


@dataclass(frozen=True, slots=True)
class PagedRow:
    """Where one sequence's tokens are.

    Attributes:
        index: positions of tokens 0 .. end - 1: a slice where the blocks are neighbours, else int64 [end].
        start: tokens held before this call.
        end: tokens held after it.
    """

    index: slice | torch.Tensor
    start: int
    end: int

    @classmethod
    def of(cls, blocks: Sequence[int], start: int, end: int) -> PagedRow:
        """From a block table, of which only the part that `end` tokens need is read."""
        used = -(-end // BLOCK_SIZE)
        first = blocks[0]
        if all(block == first + i for i, block in enumerate(blocks[:used])):
            return cls(slice(first * BLOCK_SIZE, first * BLOCK_SIZE + end), start, end)
        table = torch.tensor(blocks[:used], dtype=torch.int64)
        positions = (table[:, None] * BLOCK_SIZE + torch.arange(BLOCK_SIZE)).flatten()[:end]
        return cls(positions, start, end)

    def without_first(self) -> PagedRow:
        """The same row as a layer sees it that has nothing at position 0, of start >= 1."""
        if isinstance(self.index, slice):
            return PagedRow(slice(self.index.start + 1, self.index.stop), self.start - 1, self.end - 1)
        return PagedRow(self.index[1:], self.start - 1, self.end - 1)

    def of_tokens(self, first: int, stop: int) -> slice | torch.Tensor:
        """Positions of tokens first .. stop - 1."""
        if isinstance(self.index, slice):
            return slice(self.index.start + first, self.index.start + stop)
        return self.index[first:stop]

    @property
    def new(self) -> slice | torch.Tensor:
        """Positions of tokens start .. end - 1."""
        return self.of_tokens(self.start, self.end)


def write_kv(cache: tuple[torch.Tensor, torch.Tensor], k: torch.Tensor, v: torch.Tensor, row: PagedRow) -> None:
    """Store the keys and values [tokens, kv_heads, head_dim] of a row's new tokens, in the cache's numbers."""
    for buffer, value in zip(cache, (k, v), strict=True):
        if isinstance(row.new, slice):
            buffer[row.new] = value
        else:
            replace_rows_in_place(buffer, row.new, value)


def attend(q: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor], row: PagedRow) -> torch.Tensor:
    """Causal attention of a row's new tokens over all its tokens; scores are scaled by head_dim^-0.5.

    The tokens held before and the new ones are attended to apart, neither needing a mask, and merged by their
    log-sum-exp, so that the cost is that of the unmasked part alone. Of those held before `SEGMENT` are read at a time:
    what is gathered of a sequence whose blocks are no neighbours stays small, and where its blocks lie changes no bit.

    Args:
        q: [tokens, query_heads, head_dim]; query head h reads kv head h // (query_heads / kv_heads).
        cache: (keys, values), each [positions, kv_heads, head_dim], the new tokens already written; of any numbers,
            of which those that are read are cast to q's dtype.
    Returns:
        [tokens, query_heads, head_dim].
    """
    tokens, query_heads, head_dim = q.shape
    kv_heads = cache[0].shape[1]
    group = query_heads // kv_heads

    def read(first: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of tokens first .. stop - 1, each [kv_heads, 1, stop - first, head_dim]."""
        where = row.of_tokens(first, stop)
        keys, values = (half[where].to(q.dtype).transpose(0, 1).unsqueeze(1) for half in cache)
        return keys, values

    if tokens == 1:
        # One token: the heads of a group are the queries, and keys are read once for all of them.
        queries = q.view(kv_heads, 1, group, head_dim)
        if row.end <= SEGMENT:
            return F.scaled_dot_product_attention(queries, *read(0, row.end)).view(1, query_heads, head_dim)
        out = _with_segments(queries, read, SEGMENT, row.end, *_flash(queries, *read(0, SEGMENT)))
        return out.view(1, query_heads, head_dim)
    queries = q.view(tokens, kv_heads, group, head_dim).permute(1, 2, 0, 3)

    def spread(first: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = read(first, stop)
        return keys.expand(-1, group, -1, -1), values.expand(-1, group, -1, -1)

    own = _flash(queries, *spread(row.start, row.end), is_causal=True)
    out = _with_segments(queries, spread, 0, row.start, *own)
    return out.permute(2, 0, 1, 3).reshape(tokens, query_heads, head_dim)


def _with_segments(
    queries: torch.Tensor, read: Read, begin: int, end: int, out: torch.Tensor, lse: torch.Tensor
) -> torch.Tensor:
    """What was found of other tokens, `out` and its log-sum-exp, and of tokens begin .. end - 1, segment by segment."""
    for first in range(begin, end, SEGMENT):
        found, other = _flash(queries, *read(first, min(first + SEGMENT, end)))
        out = torch.lerp(out, found, torch.sigmoid(other - lse).unsqueeze(-1).to(out.dtype))
        lse = torch.logaddexp(lse, other)
    return out
