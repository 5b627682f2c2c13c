"""The CPU runtime: the same network, cache and step contract as on a device, in plain torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch

from ..cache import CacheSpec, HybridCache
from ..checkpoint.kv_scales import load_kv_scales
from ..checkpoint.load import load_inputs, load_weights
from ..config import BLOCK_SIZE, ModelConfig
from ..model import Qwen36Model, StepState
from ..model.layers import Linear
from ..ops.attention import PagedRow
from ..ops.fp8 import STORAGE
from ..step import Capacity, DeviceError, DraftRequest, Output, Row, RowResult, Step, StepChecker, StepResult
from .choose import choose_tokens, verified
from .config import RuntimeConfig
from .cpu_draft import CpuDraftLayer
from .cpu_layers import CpuLayers, CpuLinear, arrange_layers, round_layer_inputs
from .cpu_memory import keep_freed_memory, return_freed_memory
from .cpu_state import CpuDecode, CpuPrefill, StateEntries
from .cpu_verify import CpuVerify

SCRATCH = 0
"""The entry of the state banks that padding and warm-up write to, and block of the paged KV likewise."""
Call = Callable[[Sequence[Row]], torch.Tensor]
"""Runs rows together: hidden states [rows, tokens, hidden], those of a row its first or, where fewer, its last."""
PADDING_LIMIT = 0.25
"""Prefill rows are run together while padding stays below this part of the call."""


class CpuRuntime:
    """One rank on torch CPU. Decode rows run as one call, prefill rows in groups of like length."""

    linear: type[Linear] = CpuLinear
    """The kind of its projections."""

    _closed = True
    """Until it is open: there is nothing to give back of one that could not be made."""

    def __init__(self, config: RuntimeConfig) -> None:
        keep_freed_memory()
        model_config = config.model_config()
        dtype = getattr(torch, config.dtype)
        self.config = config
        self.model = self._load(model_config)
        self.cache = HybridCache(
            CacheSpec(
                model_config,
                config.num_blocks,
                config.num_lanes,
                config.num_slots,
                dtype,
                max_drafts=config.max_drafts,
                draft_layer=config.draft_layer,
                kv_dtype=STORAGE if config.fp8_kv else None,
            )
        )
        self._drafts = self._open_draft_layer() if config.draft_layer else None
        self._capacity = Capacity(
            num_blocks=config.num_blocks,
            num_lanes=config.num_lanes,
            num_slots=config.num_slots,
            max_model_len=config.max_model_len,
            max_step_tokens=config.max_step_tokens,
            sampling_candidates=config.sampling_candidates or 0,
            max_drafts=config.max_drafts,
            max_proposals=config.max_proposals,
        )
        self._checker = StepChecker(self._capacity, model_config.vocab_size)
        self._closed = False

    def _load(self, described: ModelConfig) -> Qwen36Model:
        """The network with its weights: quantised ones are multiplied out."""
        folder, draft, dtype = self.config.model, self.config.draft_layer, getattr(torch, self.config.dtype)
        weights = load_weights(folder, described, dtype=dtype, include_mtp=draft, rounds_inputs=True)
        weights |= self._kv_scales(described)
        model = Qwen36Model.from_weights(described, weights, CpuLayers(self.linear))
        arrange_layers(model)
        round_layer_inputs(model, load_inputs(folder, described, draft))
        return model

    def _kv_scales(self, described: ModelConfig) -> dict[str, torch.Tensor]:
        """Scales of FP8 keys and values by runtime name; none if KV is in the numbers of the model."""
        config = self.config
        if not config.fp8_kv:
            return {}
        return load_kv_scales(config.model, described, config.draft_layer, config.kv_scales).weights(described)

    @property
    def capacity(self) -> Capacity:
        return self._capacity

    @property
    def vocab_size(self) -> int:
        return self._checker.vocab_size

    def warm_up(self) -> None:
        """Touch both code paths on the scratch lane and block, so that the first request pays for no set-up."""
        tokens = min(BLOCK_SIZE, self._capacity.max_step_tokens, self._capacity.max_model_len)
        row, one = Row("warm-up", 0, [0] * tokens, 0, [0]), Row("warm-up", 0, [0], 0, [0])
        with torch.inference_mode():
            if self._drafts is not None:
                self._drafts.begin([row], (), [0])
            self._prefill([row])
            if self._drafts is not None:
                self._drafts.catch_up([SCRATCH])
            hidden = self._decode([one])
            if self._drafts is not None:
                self._drafts.begin([one], (), [0])
                self._drafts.ran([one], hidden)
                self._drafts.warm_up()
        self.cache.zero(SCRATCH)

    def run(self, step: Step) -> StepResult:
        if self._closed:
            raise DeviceError("the runtime was closed")
        self._checker.check(step)
        with torch.inference_mode():
            if self._drafts is not None:
                self._drafts.begin(step.rows, step.released_lanes, [self._checker.accepted(row) for row in step.rows])
            results = self._run(step.rows)
        self._checker.apply(step)
        return StepResult(tuple(results))

    def draft(self, requests: Sequence[DraftRequest]) -> tuple[tuple[int, ...], ...]:
        if self._closed:
            raise DeviceError("the runtime was closed")
        self._checker.check_drafting(requests)
        assert self._drafts is not None
        with torch.inference_mode():
            made = self._drafts.draft(requests)
        self._checker.drafted(requests)
        return made

    def close(self) -> None:
        """Give the memory of weights and caches back to the machine, whoever still holds this object. May be repeated.

        Whatever is not small goes, in subclasses too: what stays is what says how much was held.
        """
        if self._closed:
            return
        kept = {name: vars(self)[name] for name in ("config", "_capacity", "_checker")}
        vars(self).clear()
        vars(self).update(kept, _closed=True)
        return_freed_memory()

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        """Close; at the interpreter's end there is nothing left to do it with, nor any need."""
        if not ending():
            self.close()

    def _open_draft_layer(self) -> CpuDraftLayer | None:
        """What follows the lanes for the draft layer; None where calls do that themselves."""
        return CpuDraftLayer(self.model, self.cache, self.config.max_model_len)

    # ---- one step ----------------------------------------------------------------------------------------------

    def _run(self, rows: Sequence[Row]) -> list[RowResult]:
        results: dict[int, RowResult] = {}
        for group, call in self._calls(rows):
            hidden = call(group)
            if self._drafts is not None and not self._is_prompt(group[0]):
                self._drafts.ran(group, hidden)
            for row, result in zip(group, self._outputs(group, hidden), strict=True):
                results[id(row)] = result
        return [results[id(row)] for row in rows]

    def _verifies(self, row: Row) -> bool:
        """Whether a row has drafts, or takes in some of those of its lane's last row."""
        return bool(row.drafts or self._checker.accepted(row))

    def _is_prompt(self, row: Row) -> bool:
        """Whether a row is one of many tokens, which `_prefill` runs."""
        return len(row.tokens) > 1 and not self._verifies(row)

    def _calls(self, rows: Sequence[Row]) -> list[tuple[list[Row], Call]]:
        """Which rows run together, and what runs them."""
        verifying = equal_rows([row for row in rows if self._verifies(row)])
        calls: list[tuple[list[Row], Call]] = [(group, self._verify) for group in verifying]
        for group in group_rows([row for row in rows if not self._verifies(row)]):
            calls.append((group, self._decode if len(group[0].tokens) == 1 else self._prefill))
        return calls

    def _decode(self, rows: Sequence[Row]) -> torch.Tensor:
        """Hidden states [rows, 1, hidden]."""
        tokens = torch.tensor([[row.tokens[0]] for row in rows])
        positions = torch.tensor([[row.start] for row in rows])
        new = torch.tensor([row.blocks[row.start // BLOCK_SIZE] * BLOCK_SIZE + row.start % BLOCK_SIZE for row in rows])
        state = CpuDecode(self.cache, StateEntries.of(rows, self.cache.spec), paged(rows), new)
        hidden = self.model(tokens, positions, state)
        self._commit(rows)
        return hidden

    def _commit(self, rows: Sequence[Row]) -> None:
        """Keep the checkpoints of rows of one token; those of others are taken while their states are passed."""
        for row in rows:
            for commit in row.commits:
                self.cache.copy(row.lane, self.cache.spec.slot_entry(commit.slot))

    def _prefill(self, rows: Sequence[Row]) -> torch.Tensor:
        """Hidden states [rows, tokens, hidden], or [rows, 1, hidden] of the last tokens where no more is asked for."""
        lengths = [len(row.tokens) for row in rows]
        tokens = torch.zeros(len(rows), max(lengths), dtype=torch.int64)
        for index, row in enumerate(rows):
            tokens[index, : lengths[index]] = torch.tensor(row.tokens)
        starts = torch.tensor([[row.start] for row in rows])
        whole = any(row.output is Output.ALL_LOGITS for row in rows)
        last = None if whole else torch.tensor(lengths) - 1
        positions, state = starts + torch.arange(max(lengths)), self._prefill_state(rows, lengths)
        inputs = self.model.before_last_layer(tokens, positions, state)
        hidden = self.model.last_layer(inputs, positions, state, last)
        if self._drafts is not None:
            self._drafts.prefilled(rows, inputs) if last is not None else self._drafts.ran(rows, hidden)
        return hidden

    def _prefill_state(self, rows: Sequence[Row], lengths: Sequence[int]) -> StepState:
        return CpuPrefill(
            cache=self.cache,
            entries=StateEntries.of(rows, self.cache.spec),
            rows=paged(rows),
            lengths=lengths,
            lead=rows[0].start % BLOCK_SIZE,
            commits=[row.commits for row in rows],
        )

    def _verify(self, rows: Sequence[Row]) -> torch.Tensor:
        """Hidden states [rows, tokens + drafts, hidden]."""
        tokens = torch.tensor([[*row.tokens, *row.drafts] for row in rows])
        positions = torch.tensor([[row.start] for row in rows]) + torch.arange(tokens.shape[1])
        state = CpuVerify(
            cache=self.cache,
            entries=StateEntries.of(rows, self.cache.spec),
            rows=rows,
            where=[PagedRow.of(row.blocks, row.start, row.reach) for row in rows],
            accepted=[self._checker.accepted(row) for row in rows],
        )
        return self.model(tokens, positions, state)

    def _outputs(self, rows: Sequence[Row], hidden: torch.Tensor) -> list[RowResult]:
        """Project only the positions that something is asked of."""
        kept, counts = [], []
        for index, row in enumerate(rows):
            end = min(len(row.tokens) + len(row.drafts), hidden.shape[1])
            take = {Output.NOTHING: 0, Output.ALL_LOGITS: end}.get(row.output, 1 + len(row.drafts))
            counts.append(take)
            kept.append(hidden[index, end - take : end])
        if not sum(counts):
            return [RowResult() for _ in rows]
        logits = self._logits(torch.cat(kept))
        chosen = choose_tokens(rows, counts, logits)
        results, at = [], 0
        for row, count in zip(rows, counts, strict=True):
            here = slice(at, at + count)
            if row.output is Output.TOKEN:
                results.append(RowResult(tokens=verified(row.drafts, chosen[here])))
            else:
                results.append(RowResult(logits=logits[here] if count else None))
            at += count
        return results

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 [positions, vocab] of hidden states [positions, hidden] after the final norm."""
        return self.model.logits(hidden)


def group_rows(rows: Sequence[Row]) -> list[list[Row]]:
    """Decode rows in one group, by lane; prefill rows with others of the same start % BLOCK_SIZE and like length."""
    decode = sorted((row for row in rows if len(row.tokens) == 1), key=lambda row: row.lane)
    groups = [decode] if decode else []
    prefill = [row for row in rows if len(row.tokens) > 1]
    prefill.sort(key=lambda row: (row.start % BLOCK_SIZE, -len(row.tokens), row.lane))
    group: list[Row] = []
    for row in prefill:
        if group:
            longest = len(group[0].tokens)
            real = sum(len(other.tokens) for other in group) + len(row.tokens)
            padded = longest * (len(group) + 1)
            if row.start % BLOCK_SIZE != group[0].start % BLOCK_SIZE or padded - real > PADDING_LIMIT * padded:
                groups.append(group)
                group = []
        group.append(row)
    return [*groups, group] if group else groups


def equal_rows(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that verify drafts, in groups of as many tokens and as many drafts."""
    groups: dict[tuple[int, int], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.lane):
        groups.setdefault((len(row.tokens), len(row.drafts)), []).append(row)
    return list(groups.values())


def paged(rows: Sequence[Row]) -> list[PagedRow]:
    """Where the rows' keys and values are."""
    return [PagedRow.of(row.blocks, row.start, row.end) for row in rows]
