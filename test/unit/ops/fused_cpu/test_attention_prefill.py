"""Fused attention of many tokens against softmax over all keys in fp64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.ops.attention import apply_rotary
from qwen36_neuron.ops.attention.numba import QUERIES, SPAN, attention_prefill, store_keys
from qwen36_neuron.ops.numba.scalar import Array, f32

EPS = 1e-6
SLOTS = 20 * BLOCK_SIZE


@dataclass(frozen=True)
class Shape:
    kv_heads: int = 2
    group: int = 2
    size: int = 64
    rotated: int = 16

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group


class Rows:
    """Rows that hold `starts` tokens and get `lengths` more, and what attention of the new ones is in fp64.

    The blocks of a sequence lie in any order; around them is a number that would be seen in every result. The first
    tokens' keys and values are in the cache as they are; the new ones' are put there by `store_keys`.
    """

    def __init__(self, shape: Shape, starts: list[int], lengths: list[int], seed: int = 0, spread: float = 1.0) -> None:
        made = torch.Generator().manual_seed(seed)
        self.shape, batch, tokens = shape, len(starts), max(lengths)
        self.starts, self.lengths = np.array(starts), np.array(lengths)
        self.ends = self.starts + self.lengths
        self.qg = torch.randn(batch, tokens, 2 * shape.heads * shape.size, generator=made)
        self.kv = torch.randn(batch, tokens, 2 * shape.kv_heads * shape.size, generator=made)
        angles = torch.randn(batch, tokens, shape.rotated // 2, generator=made)
        self.cos, self.sin = angles.cos().contiguous(), angles.sin().contiguous()
        self.query_weight, self.key_weight = (
            spread * (1 + 0.2 * torch.randn(shape.size, generator=made)) for _ in "qk"
        )
        self.cache = [torch.full((SLOTS, shape.kv_heads, shape.size), 1e6) for _ in "kv"]
        free = torch.randperm(SLOTS // BLOCK_SIZE - 1, generator=made).add(1).tolist()
        used = [-(-end // BLOCK_SIZE) for end in self.ends.tolist()]
        self.tables = np.zeros((batch, max(used)), np.int32)
        for row, count in enumerate(used):
            self.tables[row, :count] = [free.pop() for _ in range(count)]
            for half in self.cache:
                half[self.slots(row)[: starts[row]]] = torch.randn(
                    starts[row], shape.kv_heads, shape.size, generator=made
                )
        for row, length in enumerate(lengths):
            self.qg[row, length:] = torch.nan
            self.kv[row, length:] = torch.nan

    def slots(self, row: int) -> torch.Tensor:
        """Of all the tokens of a row."""
        at = torch.arange(self.ends[row])
        return torch.from_numpy(self.tables[row]).long()[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE

    def run(self, last: bool = False) -> torch.Tensor:
        """The fused operations; with `last`, of the last token of each row alone."""
        keys, values = (half.numpy() for half in self.cache)
        kv_norm = self.kv.numpy(), self.key_weight.numpy(), f32(EPS)
        angles = self.cos.numpy(), self.sin.numpy()
        store_keys(*kv_norm, *angles, self.tables, self.starts, self.ends, keys, values)
        qg, counts = self.qg, self.lengths
        if last:
            rows, places = torch.arange(len(counts)), torch.from_numpy(self.lengths - 1)
            qg, counts = qg[rows, places].unsqueeze(1).contiguous(), np.ones_like(counts)
            angles = tuple(table[rows, places].unsqueeze(1).numpy() for table in (self.cos, self.sin))
        out = torch.full((*qg.shape[:2], qg.shape[2] // 2), torch.nan)
        query_norm: tuple[Array, float] = self.query_weight.numpy(), f32(EPS)
        attention_prefill(qg.numpy(), *query_norm, *angles, self.tables, self.ends, counts, keys, values, out.numpy())
        return out

    def expected(self, row: int) -> torch.Tensor:
        """[new tokens, heads * size] in fp64."""
        shape, length = self.shape, self.lengths[row]
        q, gate = self.qg[row, :length].double().chunk(2, dim=-1)
        k, v = self.kv[row, :length].double().chunk(2, dim=-1)
        rotary = tuple(table[row, :length, None].double() for table in (self.cos, self.sin))

        def heads(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            x = x.unflatten(1, (-1, shape.size))
            x = x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()
            return apply_rotary(x[None], *(table[None] for table in rotary))[0]

        old = self.slots(row)[: self.starts[row]]
        keys = torch.cat((self.cache[0][old].double(), heads(k, self.key_weight)))
        values = torch.cat((self.cache[1][old].double(), v.unflatten(1, (-1, shape.size))))
        keys, values = (half.repeat_interleave(shape.group, dim=1) for half in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", heads(q, self.query_weight), keys) * shape.size**-0.5
        sees = torch.arange(self.ends[row]) <= torch.arange(self.starts[row], self.ends[row])[:, None]
        out = torch.einsum("hqk,khd->qhd", scores.masked_fill(~sees, -torch.inf).softmax(-1), values)
        return out.flatten(1) * torch.sigmoid(gate)


def assert_right(rows: Rows, tolerance: float = 2e-5) -> None:
    """2e-5: scores of some ten, and sums of up to a thousand terms of size one, in fp32."""
    out = rows.run()
    for row, length in enumerate(rows.lengths):
        assert (out[row, :length] - rows.expected(row)).abs().max() <= tolerance
        assert (out[row, length:] == 0.0).all()


TOGETHER = QUERIES // 2  # tokens of a task


@pytest.mark.parametrize("start", [0, 1, 63, 64, 65, SPAN * BLOCK_SIZE - 1, SPAN * BLOCK_SIZE, 200, 330])
@pytest.mark.parametrize("length", [1, 2, TOGETHER - 1, TOGETHER, TOGETHER + 1, 64, 129, 200])
def test_starts_and_lengths(start: int, length: int) -> None:
    assert_right(Rows(Shape(), [start], [length]))


@pytest.mark.parametrize(
    "shape",
    [Shape(1, 1), Shape(1, 3), Shape(2, 6), Shape(4, 1), Shape(1, 70), Shape(2, 2, 20, 8), Shape(1, 2, 256, 64)],
)
def test_other_shapes(shape: Shape) -> None:
    """Queries that do not fill a task or a vector, more heads than a task has queries, heads that fit no tile."""
    assert_right(Rows(shape, [70], [100]))


def test_rows_of_unequal_lengths() -> None:
    assert_right(Rows(Shape(), [0, 130, 64, 5], [100, 1, 33, 64]))


def test_scores_far_apart() -> None:
    """A softmax that is all but one-hot, whose peak moves from block to block.

    1e-4: scores reach 300, whose last bit is 3e-5, and what is wrong in a score is wrong in its weight.
    """
    assert_right(Rows(Shape(), [100], [150], spread=6.0), tolerance=1e-4)


def test_the_last_token_alone_gives_what_it_gives_among_others() -> None:
    rows = Rows(Shape(), [0, 130, 64], [100, 1, 33])
    alone = rows.run(last=True)
    for row in range(3):
        assert (alone[row, 0] - rows.expected(row)[-1]).abs().max() <= 2e-5


def test_only_the_new_tokens_slots_are_written() -> None:
    rows = Rows(Shape(), [70, 3], [10, 64])
    before = [half.clone() for half in rows.cache]
    rows.run()
    new = torch.cat([rows.slots(row)[rows.starts[row] :] for row in range(2)])
    for half, old in zip(rows.cache, before, strict=True):
        changed = (half != old).flatten(1).any(1).nonzero().flatten()
        assert changed.tolist() == sorted(new.tolist())
