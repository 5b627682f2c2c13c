"""Rows of an attention block between its projections, run by the compiled form, and its definition in fp64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.ops.attention import apply_rotary, naive_attention
from qwen36_neuron.ops.fp8 import LARGEST, STORAGE

EPS = 1e-6
POSITIONS = 20 * BLOCK_SIZE

TASK_QUERIES, SPAN_TOKENS = 128, 128
"""Queries that the compiled form takes together, and keys between two corrections of its running softmax."""


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
    tokens' keys and values are in the cache as they are; the new ones' are put there by `store_keys`. With `fp8` the
    cache holds codes, over scales of the heads, and what is expected is of what the cache then holds.
    """

    def __init__(
        self,
        shape: Shape,
        starts: list[int],
        lengths: list[int],
        seed: int = 0,
        spread: float = 1.0,
        fp8: bool = False,
    ) -> None:
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
        self.cache = [torch.full((POSITIONS, shape.kv_heads, shape.size), 1e6) for _ in "kv"]
        free = torch.randperm(POSITIONS // BLOCK_SIZE - 1, generator=made).add(1).tolist()
        used = [-(-end // BLOCK_SIZE) for end in self.ends.tolist()]
        self.tables = np.zeros((batch, max(used)), np.int32)
        for row, count in enumerate(used):
            self.tables[row, :count] = [free.pop() for _ in range(count)]
            for half in self.cache:
                half[self.positions(row)[: starts[row]]] = torch.randn(
                    starts[row], shape.kv_heads, shape.size, generator=made
                )
        self.scales: list[torch.Tensor] = []
        if fp8:
            self.scales = [torch.rand(shape.kv_heads, generator=made) * size for size in (0.05, 0.02)]
            for half, scale in zip(self.cache, self.scales, strict=True):
                half.div_(scale[:, None]).clamp_(-LARGEST, LARGEST)
            self.cache = [half.to(STORAGE) for half in self.cache]
        for row, length in enumerate(lengths):
            self.qg[row, length:] = torch.nan
            self.kv[row, length:] = torch.nan

    def positions(self, row: int) -> torch.Tensor:
        """Of all the tokens of a row."""
        at = torch.arange(self.ends[row])
        return torch.from_numpy(self.tables[row]).long()[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE

    def run(self, last: bool = False) -> torch.Tensor:
        """The compiled operations; with `last`, of the last token of each row alone."""
        from qwen36_neuron.ops.attention.numba import QUERIES, SPAN, attention_prefill, store_keys
        from qwen36_neuron.ops.attention.numba_pages import Pages

        assert (QUERIES, SPAN * BLOCK_SIZE) == (TASK_QUERIES, SPAN_TOKENS), "the lengths of the tests are about these"
        pages = Pages.of(*self.cache, *self.scales)
        kv_norm = self.kv.numpy(), self.key_weight.numpy(), np.float32(EPS)
        angles = self.cos.numpy(), self.sin.numpy()
        store_keys(*kv_norm, *angles, self.tables, self.starts, self.ends, pages)
        qg, counts = self.qg, self.lengths
        if last:
            rows, places = torch.arange(len(counts)), torch.from_numpy(self.lengths - 1)
            qg, counts = qg[rows, places].unsqueeze(1).contiguous(), np.ones_like(counts)
            angles = tuple(table[rows, places].unsqueeze(1).numpy() for table in (self.cos, self.sin))
        out = torch.full((*qg.shape[:2], qg.shape[2] // 2), torch.nan)
        query_norm = self.query_weight.numpy(), np.float32(EPS)
        attention_prefill(qg.numpy(), *query_norm, *angles, self.tables, self.ends, counts, pages, out.numpy())
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

        old = self.positions(row)[: self.starts[row]]
        if self.scales:
            keys, values = self.held(row)
        else:
            keys = torch.cat((self.cache[0][old].double(), heads(k, self.key_weight)))
            values = torch.cat((self.cache[1][old].double(), v.unflatten(1, (-1, shape.size))))
        out = naive_attention(heads(q, self.query_weight), keys, values, int(self.starts[row]))
        return out.flatten(1) * torch.sigmoid(gate)

    def held(self, row: int) -> list[torch.Tensor]:
        """Keys and values of all tokens of a row that the cache of codes holds, multiplied out in fp64."""
        return [
            half[self.positions(row)].double() * scale.double()[:, None]
            for half, scale in zip(self.cache, self.scales, strict=True)
        ]

    def new_codes(self, row: int) -> list[torch.Tensor]:
        """FP8 of the new tokens' keys and values [tokens, kv_heads, size], rounded from fp64."""
        shape, length = self.shape, self.lengths[row]
        k, v = (x.unflatten(1, (-1, shape.size)) for x in self.kv[row, :length].double().chunk(2, dim=-1))
        k = k * (k.square().mean(-1, keepdim=True) + EPS).rsqrt() * self.key_weight.double()
        angles = (table[row, :length, None].double()[None] for table in (self.cos, self.sin))
        k = apply_rotary(k[None], *angles)[0]
        return [
            (x.float() * scale.reciprocal()[:, None]).clamp(-LARGEST, LARGEST).to(STORAGE)
            for x, scale in zip((k, v), self.scales, strict=True)
        ]
