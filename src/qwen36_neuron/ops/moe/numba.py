"""The routed experts on a CPU, compiled: tokens sorted by expert, each expert's panels read once for all its tokens.

One form serves a step of one token and a prompt of thousands. A product of panels is as fast as a matrix library's at
every number of rows, and a row's bits do not depend on how many there are: what a token gets from its experts is the
same to the bit whichever tokens share them, alone, beside others or in a long prompt. Nothing is padded to the expert
with the most tokens, and of an expert that nobody chose nothing is read.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange

from ..numba.held import rounded_rows
from ..numba.panels import PANEL, Packed, times_panel, times_panel_picked
from ..numba.projections import Matrix, project_add_few
from ..numba.scalar import Array, array, compiled, silu
from .naive import route

ROWS = 64
"""Tokens of an expert that a panel is multiplied with at once: what it gives stays in a core's own cache."""


class Stack(NamedTuple):
    """A weight of every expert, one after the other in panels.

    Attributes:
        packed: data [experts * panels of one, inputs, PANEL]; zero rows fill each part of an expert up to whole panels,
            and the outputs are those of a part.
        experts: number of them.
    """

    packed: Packed
    experts: int

    @classmethod
    def of(cls, weight: torch.Tensor, parts: int = 1) -> Stack:
        """Of an fp32 or bfloat16 weight [experts, parts * outputs, inputs], in the bytes that its numbers need.

        Args:
            parts: 2 for gates before ups.
        """
        packed = Packed.of(_by_panels(weight, parts))
        return cls(packed._replace(outputs=weight.shape[1] // parts), len(weight))

    @classmethod
    def of_codes(
        cls, codes: torch.Tensor, scales: torch.Tensor, group: int, parts: int = 1, rounds: bool = False
    ) -> Stack | None:
        """Of codes, int8 or float8_e4m3fn [experts, parts * outputs, inputs].

        Args:
            scales: [experts, parts * outputs, ceil(inputs / group)]; group, rounds: see `Packed.of_codes`.
        Returns:
            None where codes cannot be held as such.
        """
        bits = codes.view(torch.int8) if codes.dtype != torch.int8 else codes
        filled = _by_panels(bits, parts).view(codes.dtype)
        packed = Packed.of_codes(filled, _by_panels(scales, parts), group, rounds)
        return None if packed is None else cls(packed._replace(outputs=codes.shape[1] // parts), len(codes))

    @property
    def nbytes(self) -> int:
        """Of memory."""
        return self.packed.nbytes


def _by_panels(weight: torch.Tensor, parts: int) -> torch.Tensor:
    """[experts, parts * outputs, n] with each part filled up to whole panels: [rows, n]."""
    experts, rows, inputs = weight.shape
    split = weight.detach().reshape(experts * parts, rows // parts, inputs)
    return F.pad(split, (0, 0, 0, -split.shape[1] % PANEL)).reshape(-1, inputs)


class Mixture(NamedTuple):
    """All of a layer's feed-forward block but its norm: router, routed experts and shared expert.

    The shared expert is one of a stack of one, which every token chose; how much of it, its gate says.

    Attributes:
        scores: fp32 or bfloat16 [experts + 1, hidden], of the router and, last, of the shared expert's gate.
        gate_up, shared_gate_up: of two parts.
        top_k, renormalise: see `route`.
    """

    scores: Packed
    gate_up: Stack
    down: Stack
    shared_gate_up: Stack
    shared_down: Stack
    top_k: int
    renormalise: bool

    def add_to(self, x: Matrix, out: Matrix) -> None:
        """out += the block of x, both [tokens, hidden]. A token's routing, too, is the same to the bit in any batch."""
        tokens, count = len(x.array), self.gate_up.experts
        scored = torch.zeros(tokens, count + 1)
        project_add_few(x.array, self.scores, array(scored))
        weights, chosen = route(scored[:, :count], self.top_k, self.renormalise)
        every, share = np.zeros((tokens, 1), np.int64), array(scored[:, count:].sigmoid())
        for stacks, weight, which in (
            ((self.gate_up, self.down), array(weights), array(chosen)),
            ((self.shared_gate_up, self.shared_down), share, every),
        ):
            gate_up, down = stacks
            add_experts(x.array, gate_up.packed, down.packed, gate_up.experts, weight, which, out.array)

    @property
    def nbytes(self) -> int:
        """Of memory."""
        return sum(held.nbytes for held in self[:5])


def experts(x: torch.Tensor, gate_up: Stack, down: Stack, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """`moe.naive.experts` of fp32 x [tokens, hidden], with the weights stacked: a token's sum is in the same order.

    It takes top_k * inner numbers of memory a token.

    Args:
        gate_up: of two parts; weights: fp32 [tokens, top_k]; chosen: int64 [tokens, top_k].
    """
    out, x = torch.zeros(x.shape), x.contiguous()
    add_experts(array(x), gate_up.packed, down.packed, gate_up.experts, array(weights), array(chosen), array(out))
    return out


@compiled(inline=False)
def sort_by_expert(chosen: Array, experts: int) -> tuple[Array, Array]:
    """The pairs of a token and one of its experts, sorted by expert and then by token.

    Args:
        chosen: int64 [tokens, top_k].
    Returns:
        The pairs, each as token * top_k + place, and where each expert's begin, int64 [experts + 1].
    """
    every, first = chosen.reshape(chosen.size), np.zeros(experts + 1, np.int64)
    for expert in every:
        first[expert + 1] += 1
    for expert in range(experts):
        first[expert + 1] += first[expert]
    pairs, at = np.empty(every.shape[0], np.int64), first.copy()
    for pair in range(every.shape[0]):
        expert = every[pair]
        pairs[at[expert]] = pair
        at[expert] += 1
    return pairs, first


@compiled(parallel=True)
def add_experts(
    x: Array, gate_up: Packed, down: Packed, experts: int, weights: Array, chosen: Array, out: Array
) -> None:
    """out += `experts`, of rows x [tokens, hidden] and out [tokens, hidden], contiguous, and weights as in `Stack`."""
    tokens, top_k = chosen.shape
    pairs, first = sort_by_expert(chosen, experts)
    used, picks, shares = np.flatnonzero(np.diff(first)), pairs // top_k, weights.reshape(weights.size)[pairs]
    rounded = rounded_rows(x) if gate_up.rounds else x
    inner = np.empty((pairs.shape[0], gate_up.outputs), np.float32)
    half, panels = gate_up.data.shape[0] // experts // 2, down.data.shape[0] // experts
    for task in prange(half * used.shape[0]):
        # The experts of a panel follow each other, not an expert's panels: threads get equal shares of a busy expert.
        panel, expert = task // used.shape[0], used[task % used.shape[0]]
        place, column = 2 * expert * half + panel, panel * PANEL
        width, last = min(PANEL, gate_up.outputs - column), first[expert + 1]
        most = min(ROWS, last - first[expert])
        gates, ups = np.empty((most, PANEL), np.float32), np.empty((most, PANEL), np.float32)
        for begin in range(first[expert], last, ROWS):
            rows = picks[begin : min(begin + ROWS, last)]
            times_panel_picked(rounded, rows, gate_up, place, gates)
            times_panel_picked(rounded, rows, gate_up, place + half, ups)
            for i in range(rows.shape[0]):
                for j in range(width):
                    inner[begin + i, column + j] = silu(gates[i, j]) * ups[i, j]
    middle = rounded_rows(inner) if down.rounds else inner
    for panel in prange(panels):
        column = panel * PANEL
        width = min(PANEL, down.outputs - column)
        total, found = np.zeros((tokens, PANEL), np.float32), np.empty((ROWS, PANEL), np.float32)
        for expert in used:
            for begin in range(first[expert], first[expert + 1], ROWS):
                end = min(begin + ROWS, first[expert + 1])
                times_panel(middle[begin:end], down, expert * panels + panel, found)
                for i in range(end - begin):
                    for j in range(PANEL):
                        total[picks[begin + i], j] += shares[begin + i] * found[i, j]
        for i in range(tokens):
            for j in range(width):
                out[i, column + j] += total[i, j]
