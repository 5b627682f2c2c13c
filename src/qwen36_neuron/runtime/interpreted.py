"""The CPU runtime whose operations are the NKI kernels, run by their interpreter: what a device is told, run here.

The memory, the layout of a call and the steps are those of the graphs that are compiled for a device (`graph`); only
the sizes are made to fit each call. It is slow, and meant for proof: it must give what the plain CPU runtime gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..config import BLOCK_SIZE
from ..graph.buckets import PrefillBucket
from ..graph.inputs import (
    DecodeInputs,
    PrefillInputs,
    decode_inputs,
    empty_decode,
    empty_prefill,
    prefill_inputs,
    split,
)
from ..graph.memory import StepMemory
from ..graph.state import GraphDecode, GraphPrefill
from ..model.norm import set_gated_norm
from ..ops.kernels import ROWS, check_shapes, open_kernels
from ..step import Output, Row, RowResult
from .config import RuntimeConfig
from .cpu import CpuRuntime

CHUNK = 512
"""Places of one prefill call at most; longer rows are cut at block boundaries, as a device's buckets do."""


class InterpretedRuntime(CpuRuntime):
    """The CPU runtime with the memory of a device and interpreted kernels.

    Rows of one token are one call, each longer row is its own. A checkpoint is restored by reading it from its entry.

    Raises:
        ConfigError: the kernels do not take the model's sizes, or there is no interpreter beside AWS's own nki.
    """

    def __init__(self, config: RuntimeConfig) -> None:
        check_shapes("interpreter", config.model_config())
        self.kernels = open_kernels("interpreter", cores=1)
        super().__init__(config)
        set_gated_norm(self.model, self.kernels.gated_norm)
        self.memory = StepMemory.of(self.cache)
        del self.cache

    def warm_up(self) -> None:
        """Run both kinds of call on the scratch block and lane alone."""
        with torch.inference_mode():
            self._run_prefill(empty_prefill(PrefillBucket(BLOCK_SIZE, 0), 1), whole=False)
            self._run_decode(empty_decode(1, BLOCK_SIZE, 1))

    # ---- one step ----------------------------------------------------------------------------------------------------

    def _run(self, rows: Sequence[Row]) -> list[RowResult]:
        single = [row for row in rows if len(row.tokens) == 1]
        groups = [[row] for row in rows if len(row.tokens) > 1]
        results: dict[int, RowResult] = {}
        for group in [single, *groups] if single else groups:
            hidden = self._decode(group) if group is single else self._prefill(group)
            for row, result in zip(group, self._outputs(group, hidden), strict=True):
                results[id(row)] = result
        return [results[id(row)] for row in rows]

    def _decode(self, rows: Sequence[Row]) -> torch.Tensor:
        """[rows, 1, hidden]."""
        blocks = max(-(-row.end // BLOCK_SIZE) for row in rows)
        commits = max(1, sum(len(row.commits) for row in rows))
        lanes = self._capacity.num_lanes
        return self._run_decode(decode_inputs(rows, len(rows), blocks * BLOCK_SIZE, commits, lanes))

    def _prefill(self, rows: Sequence[Row]) -> torch.Tensor:
        """[1, tokens, hidden] of one row, or [1, 1, hidden] of its last token where no more is asked for."""
        (row,) = rows
        whole, parts = row.output is Output.ALL_LOGITS, []
        while True:
            lead = row.start % BLOCK_SIZE
            end = row.start - lead + CHUNK
            piece, rest = (row, None) if row.end <= end else split(row, end)
            places = lead + len(piece.tokens)
            active = BLOCK_SIZE if places <= BLOCK_SIZE else -(-places // ROWS) * ROWS
            bucket = PrefillBucket(active, row.start - lead)
            inputs = prefill_inputs(piece, bucket, max(1, len(piece.commits)), self._capacity.num_lanes)
            hidden = self._run_prefill(inputs, whole)
            parts.append(hidden[:, lead:places] if whole else hidden)
            if rest is None:
                return torch.cat(parts, dim=1) if whole else hidden
            row = rest

    def _run_prefill(self, inputs: PrefillInputs, whole: bool) -> torch.Tensor:
        state = GraphPrefill(self.memory, inputs, self.kernels)
        hidden: torch.Tensor = self.model(inputs.tokens, state.positions, state, None if whole else state.last)
        return hidden

    def _run_decode(self, inputs: DecodeInputs) -> torch.Tensor:
        state = GraphDecode(self.memory, inputs, self.kernels)
        hidden: torch.Tensor = self.model(inputs.tokens, state.positions, state)
        return hidden
