"""The CPU runtime whose operations are the NKI kernels, run by their interpreter: what a device is told, run here.

The memory, the layout of a call and the steps are those of the graphs that are compiled for a device (`graph`); only
the sizes are made to fit each call. It is slow, and meant for proof: it must give what the plain CPU runtime gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..config import BLOCK_SIZE
from ..graph.buckets import PrefillBucket
from ..graph.draft import Running, make_drafts, run_tokens
from ..graph.inputs import (
    DecodeInputs,
    DraftInputs,
    PrefillInputs,
    VerifyInputs,
    decode_inputs,
    draft_inputs,
    draft_rows,
    empty_decode,
    empty_draft,
    empty_prefill,
    empty_verify,
    prefill_inputs,
    split,
    verify_inputs,
    verify_pieces,
)
from ..graph.memory import StepMemory
from ..graph.state import GraphDecode, GraphDraft, GraphPrefill, GraphVerify
from ..model.norm import RMSNorm, set_gated_norm
from ..ops.kernels import ROWS, check_shapes, open_kernels
from ..step import DeviceError, DraftRequest, Output, Row
from .config import RuntimeConfig
from .cpu import Call, CpuRuntime

CHUNK = 512
"""Places of one prefill call at most; longer rows are cut at block boundaries, as a device's buckets do."""


class InterpretedRuntime(CpuRuntime):
    """The CPU runtime with the memory of a device and interpreted kernels.

    Rows of one token are one call, which verifies drafts if any of them needs it; each longer row is its own, or
    several where it has drafts. A checkpoint is restored by reading it from its entry. With a draft layer every call
    writes that layer's keys and values too, and drafts are made in a call of their own.

    Raises:
        ConfigError: the kernels do not take the model's sizes, or there is no interpreter beside AWS's own nki.
    """

    def __init__(self, config: RuntimeConfig) -> None:
        check_shapes("interpreter", config.model_config(), drafts=config.max_drafts)
        self.kernels = open_kernels("interpreter", cores=1)
        super().__init__(config)
        set_gated_norm(self.model, self.kernels.gated_norm)
        self.memory = StepMemory.of(self.cache, config.max_drafts)
        del self.cache

    def warm_up(self) -> None:
        """Run every kind of call on the scratch block and lane alone."""
        with torch.inference_mode():
            self._run_prefill(empty_prefill(PrefillBucket(BLOCK_SIZE, 0), 1), whole=False)
            self._run_decode(empty_decode(1, BLOCK_SIZE, 1))
            if self._capacity.max_drafts:
                self._run_verify(empty_verify(1, BLOCK_SIZE, self._capacity.max_drafts, 1))
            if self._capacity.max_proposals:
                self._run_draft(empty_draft(1, BLOCK_SIZE, self._capacity.max_proposals))

    def draft(self, requests: Sequence[DraftRequest]) -> tuple[tuple[int, ...], ...]:
        if self._closed:
            raise DeviceError("the runtime was closed")
        self._checker.check_drafting(requests)
        rows = draft_rows(requests, self._checker.held, self._capacity.max_model_len)
        asked = [row for row in rows if row.count]
        made = iter(())
        if asked:
            blocks = max(-(-row.reach // BLOCK_SIZE) for row in asked)
            inputs = draft_inputs(asked, len(asked), blocks * BLOCK_SIZE, max(row.count for row in asked))
            with torch.inference_mode():
                made = iter(self._run_draft(inputs).tolist())
        self._checker.drafted(requests)
        return tuple(tuple(next(made)[: row.count]) if row.count else () for row in rows)

    def _open_draft_layer(self) -> None:
        """Nothing: it is in the calls."""

    # ---- one step ----------------------------------------------------------------------------------------------------

    def _calls(self, rows: Sequence[Row]) -> list[tuple[list[Row], Call]]:
        single = [row for row in rows if len(row.tokens) == 1]
        calls: list[tuple[list[Row], Call]] = []
        if single:
            calls.append((single, self._verify if any(map(self._verifies, single)) else self._decode))
        for row in rows:
            if len(row.tokens) > 1:
                calls.append(([row], self._in_pieces if self._verifies(row) else self._prefill))
        return calls

    def _decode(self, rows: Sequence[Row]) -> torch.Tensor:
        """[rows, 1, hidden]."""
        blocks = max(-(-row.end // BLOCK_SIZE) for row in rows)
        commits = max(1, sum(len(row.commits) for row in rows))
        lanes = self._capacity.num_lanes
        return self._run_decode(decode_inputs(rows, len(rows), blocks * BLOCK_SIZE, commits, lanes))

    def _verify(self, rows: Sequence[Row]) -> torch.Tensor:
        """[rows, 1 + most drafts, hidden]."""
        return self._verify_behind(rows, [self._checker.accepted(row) for row in rows])

    def _verify_behind(self, rows: Sequence[Row], accepted: Sequence[int]) -> torch.Tensor:
        blocks = max(-(-row.reach // BLOCK_SIZE) for row in rows)
        commits = max(1, sum(len(row.commits) for row in rows))
        drafts, lanes = self._capacity.max_drafts, self._capacity.num_lanes
        return self._run_verify(verify_inputs(rows, accepted, len(rows), blocks * BLOCK_SIZE, drafts, commits, lanes))

    def _in_pieces(self, rows: Sequence[Row]) -> torch.Tensor:
        """[1, tokens + drafts, hidden] of one row of several tokens that verifies, or of fewer of them."""
        (row,) = rows
        accepted = self._checker.accepted(row)
        first, between, last = verify_pieces(row, accepted)
        parts = [self._verify_behind(first, [accepted])[:, :1]] if first else []
        parts += [self._prefill([replace(piece, output=row.output)]) for piece in between]
        parts += [self._verify_behind(last, [0])[:, : 1 + len(row.drafts)]] if last else []
        return torch.cat(parts, dim=1)

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
        return self._hidden(state, None if whole else state.last)

    def _run_decode(self, inputs: DecodeInputs) -> torch.Tensor:
        return self._hidden(GraphDecode(self.memory, inputs, self.kernels))

    def _run_verify(self, inputs: VerifyInputs) -> torch.Tensor:
        return self._hidden(GraphVerify(self.memory, inputs, self.kernels))

    def _hidden(self, state: Running, last: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states after the final norm."""
        hidden: torch.Tensor = self.model.norm(run_tokens(self.model, state, last))
        return hidden

    def _run_draft(self, inputs: DraftInputs) -> torch.Tensor:
        """int32 [rows, drafts]."""
        return make_drafts(self.model, GraphDraft(self.memory, inputs, self.kernels), self._best)[0]

    def _best(self, x: torch.Tensor, norm: RMSNorm) -> tuple[torch.Tensor, torch.Tensor]:
        logits, tokens = self.model.logits(norm(x)).max(-1)
        return tokens, logits
