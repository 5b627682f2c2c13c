"""Rows that verify drafts on CPU as a program of fused calls; what it computes is defined by `cpu_verify`.

Rows need not be alike: each has any number of drafts, none included, and takes in any number of its lane's last ones.
So all rows of a step that have a few positions are one call, which reads the weights once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..cache import DraftFactors, HybridCache
from ..ops.attention.numba_verify import attention_verify
from ..ops.gated_delta_rule.numba_verify import delta_net_verify
from ..ops.numba.drafts import Factors, VerifyRows
from ..ops.numba.scalar import Array, array
from ..ops.numba.states import Entries
from ..step import Row
from .cpu_state import source
from .fused_decode import AttentionStep, DecodeProgram, LayerProgram, block_tables

MOST = 32
"""Positions of a row, drafts included, up to which it runs here: what a row costs grows with their square."""


@dataclass(frozen=True, slots=True)
class VerifyStep:
    """The rows of one step, and cos and sin of all their positions, fp32 [positions, dim / 2]."""

    rows: VerifyRows
    cos: Array
    sin: Array


class VerifyProgram:
    """The network of a `DecodeProgram` for rows of a few positions each, the last of which may be drafts."""

    def __init__(self, program: DecodeProgram, cache: HybridCache) -> None:
        self.program, self.spec = program, cache.spec
        self._factors = {layer: _factors(found) for layer, found in cache.drafts.items()}

    def run(self, rows: Sequence[Row], accepted: Sequence[int]) -> torch.Tensor:
        """Run tokens and drafts of each row: hidden states after the final norm, fp32 [rows, most positions, hidden].

        Memory of lanes, blocks, unconfirmed tokens and checkpoints is updated in place. What a row has fewer positions
        for is zero.

        Args:
            accepted: how many of its lane's last drafts each row takes in first.
        """
        counts = [len(row.tokens) + len(row.drafts) for row in rows]
        step = self._step(rows, accepted, counts)
        tokens = [token for row in rows for token in (*row.tokens, *row.drafts)]
        flat = self.program.through(tokens, lambda layer, x, out: self._mix(layer, x, step, out))
        if min(counts) == max(counts):
            return flat.view(len(rows), counts[0], -1)
        hidden = flat.new_zeros(len(rows), max(counts), flat.shape[1])
        for index, part in enumerate(flat.split(counts)):
            hidden[index, : len(part)] = part
        return hidden

    def _step(self, rows: Sequence[Row], accepted: Sequence[int], counts: Sequence[int]) -> VerifyStep:
        entry = self.spec.slot_entry
        marks = [
            (index, commit.boundary - row.start + right, entry(commit.slot))
            for index, (row, right) in enumerate(zip(rows, accepted, strict=True))
            for commit in row.commits
        ]
        where = VerifyRows(
            lanes=_integers([row.lane for row in rows]),
            sources=_integers([source(row, self.spec) for row in rows]),
            fresh=np.array([row.start == 0 for row in rows], np.bool_),
            accepted=_integers(accepted),
            tokens=_integers([len(row.tokens) for row in rows]),
            first=_integers(np.cumsum([0, *counts])),
            starts=_integers([row.start for row in rows]),
            tables=block_tables(rows),
            marks=_integers(marks).reshape(-1, 3),
        )
        positions = np.concatenate([np.arange(row.start, row.reach) for row in rows])
        return VerifyStep(where, *self.program.angles(positions))

    def _mix(self, layer: LayerProgram, projected: Array, step: VerifyStep, out: Array) -> None:
        mixer = layer.mixer
        if isinstance(mixer, AttentionStep):
            norms = mixer.query.weight, mixer.key.weight, mixer.query.eps
            attention_verify(projected, *norms, step.cos, step.sin, mixer.pages, step.rows, 0, out)
            return
        w = mixer.weights
        small = w.taps, w.rate, w.dt_bias, w.norm_weight, w.eps
        bank = Entries(mixer.windows, mixer.states)
        delta_net_verify(projected, small, w.key_heads, bank, self._factors[layer.index], step.rows, out)


def _factors(factors: DraftFactors) -> Factors:
    return Factors(*(array(getattr(factors, name)) for name in Factors._fields))


def _integers(values: Any) -> Array:
    return np.array(values, np.int64)
