"""The Neuron runtime: the step contract on top of the compiled NxDI application."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

import torch

from ..checkpoint.kv_scales import FILE as KV_SCALES
from ..config import ModelConfig
from ..errors import ConfigError
from ..graph.inputs import draft_rows, split, verify_pieces
from ..graph.options import GraphOptions
from ..nxdi.application import Answer, NeuronQwen36ForCausalLM
from ..nxdi.config import Qwen36InferenceConfig
from ..ops.sampling import UNDECIDED
from ..step import Capacity, DraftRequest, Output, Row, RowResult, Step, StepChecker, StepResult
from .choose import draw, verified
from .config import RuntimeConfig
from .device_thread import DeviceThread
from .environment import check_fp8_environment

STEP_TIMEOUT = 120.0
"""Seconds for one step; the longest is a whole step of context encoding at the longest prefix. A step for prompt
log-probabilities runs the device once a token, and has this for each of them."""

START_TIMEOUT = 1800.0
"""Seconds to load all graphs and weights, and for the first run of all graphs."""


class NeuronRuntime:
    """All ranks of one device. Rows of one token run as one call, longer rows one after the other.

    The call of rows of one token verifies drafts if any of them has some, or takes some in; else it decodes.

    Lanes, slots and blocks are those of the step: which memory a call reads and writes is in its inputs, and a row that
    starts a sequence reads zeros, so nothing has to be cleared between sequences.
    """

    def __init__(self, config: RuntimeConfig, app: NeuronQwen36ForCausalLM, step_timeout: float = STEP_TIMEOUT) -> None:
        """Drive an application that has been loaded.

        Raises:
            ConfigError: the artifact was compiled for other sizes than `config` asks for.
        """
        check_artifact(config, app.options)
        self.app = app
        self.step_timeout = step_timeout
        self._capacity = Capacity(
            num_blocks=config.num_blocks,
            num_lanes=config.num_lanes,
            num_slots=config.num_slots,
            max_model_len=config.max_model_len,
            max_step_tokens=config.max_step_tokens,
            sampling_candidates=0 if config.sampling_candidates == 0 else app.options.sampling_candidates,
            max_drafts=config.max_drafts,
            max_proposals=config.max_proposals,
        )
        for model in app.models:
            model.lazy_logits = config.lazy_logits
        self._vocab_size: int = app.config.vocab_size
        self._checker = StepChecker(self._capacity, self._vocab_size)
        self._thread = DeviceThread()

    @classmethod
    def open(cls, config: RuntimeConfig) -> NeuronRuntime:
        """Load the artifact and the weights onto the device.

        Raises:
            ConfigError: there is no artifact, it was compiled for something else, or the environment would misread it.
            DeviceError: loading failed.
        """
        if config.artifact is None or not (config.artifact / "model.pt").is_file():
            raise ConfigError(
                "artifact", config.artifact, "is not a folder of compiled graphs", "Compile the model for Neuron first"
            )
        inference_config = Qwen36InferenceConfig.load(str(config.artifact))
        options = inference_config.neuron_config.options
        check_artifact(config, options)
        if config.description is not None:
            check_model(config, config.description, inference_config.model_config)
        check_fp8_environment(options.weights, kv_cache_dtype=options.kv_cache_dtype)
        app = NeuronQwen36ForCausalLM(str(config.model), inference_config)
        beside = config.artifact / KV_SCALES
        app.kv_scales = config.kv_scales or (beside if beside.is_file() else None)
        runtime = cls(config, app)
        runtime._thread.call(
            lambda: app.load(str(config.artifact), skip_warmup=True), timeout=START_TIMEOUT, what="loading"
        )
        return runtime

    @property
    def capacity(self) -> Capacity:
        return self._capacity

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    def warm_up(self) -> None:
        """Run every graph once, on scratch memory alone."""
        for model in self.app.models:
            for example, bucket in zip(model.input_generator(), model.neuron_config.buckets, strict=True):
                what = f"the first run of {model.tag} {bucket}"
                self._thread.call(model.call, example, 1, timeout=START_TIMEOUT, what=what)

    def run(self, step: Step) -> StepResult:
        self._checker.check(step)
        results = self._thread.call(self._run, step.rows, timeout=self.step_timeout, what=_describe(step))
        self._checker.apply(step)
        return StepResult(tuple(results))

    def draft(self, requests: Sequence[DraftRequest]) -> tuple[tuple[int, ...], ...]:
        self._checker.check_drafting(requests)
        rows = draft_rows(requests, self._checker.held, self._capacity.max_model_len)
        asked = [row for row in rows if row.count]
        what = f"drafts of {len(asked)} rows"
        made = iter(self._thread.call(self.app.draft, asked, timeout=self.step_timeout, what=what) if asked else ())
        self._checker.drafted(requests)
        return tuple(next(made) if row.count else () for row in rows)

    def close(self) -> None:
        """Give the graphs and their memory back to the device's runtime."""
        self._thread.close()
        for model in self.app.models:
            model.model = None
        self.app.traced_model = None

    # ---- one step ----------------------------------------------------------------------------------------------------

    def _run(self, rows: Sequence[Row]) -> list[RowResult]:
        results: dict[int, RowResult] = {}
        single = [row for row in rows if len(row.tokens) == 1]
        for row, answer in zip(single, self._together(single), strict=True):
            results[id(row)] = _result(row, answer)
        for row in rows:
            if row.output is Output.ALL_LOGITS and len(row.tokens) > 1:
                results[id(row)] = RowResult(logits=self._every_logit(row))
            elif len(row.tokens) > 1:
                results[id(row)] = _result(row, self._alone(row))
        return [results[id(row)] for row in rows]

    def _together(self, rows: Sequence[Row]) -> Iterator[Answer]:
        """Rows of one token."""
        accepted = [self._checker.accepted(row) for row in rows]
        if any(accepted) or any(row.drafts for row in rows):
            return self.app.verify(rows, accepted)
        return self.app.decode(rows)

    def _alone(self, row: Row) -> Answer:
        """A row of several tokens; the answer of its end."""
        first, between, last = verify_pieces(row, self._checker.accepted(row))
        for piece in first:
            list(self._together([piece]))
        for piece in between:
            answer = self.app.prefill(piece) if len(piece.tokens) > 1 else next(self.app.decode([piece]))
        for piece in last:
            (answer,) = self.app.verify([piece], [0])
        return answer

    def _every_logit(self, row: Row) -> torch.Tensor:
        """Prompt log-probabilities, token by token through the decode graph.

        A context-encoding graph gives the logits of one token: those of a whole chunk would take half a gigabyte.
        """
        parts: list[torch.Tensor] = []
        accepted, pieces = self._checker.accepted(row), []
        while len(row.tokens) > 1:
            head, row = split(row, row.start + 1)
            pieces.append(head)
        for piece in (*pieces, row):
            found = self.app.verify([piece], [accepted]) if accepted else self.app.decode([piece])
            parts += (answer.logits.fetch()[:1] for answer in found)
            accepted = 0
            self._thread.moved()
        return torch.cat(parts)


def check_artifact(config: RuntimeConfig, options: GraphOptions) -> None:
    """Raises ConfigError naming every size that the artifact was compiled with and the configuration contradicts."""
    wrong = [
        f"{field} is {compiled}, asked for {asked}"
        for field, compiled, asked in (
            ("num_blocks", options.num_blocks, config.num_blocks),
            ("num_slots", options.num_slots, config.num_slots),
            ("num_lanes", options.num_lanes, config.num_lanes),
            ("tp_degree", options.tp_degree, config.tp_degree),
            ("dtype", options.dtype, config.dtype),
            ("kernels", options.kernels, config.kernels or options.kernels),
            ("FP8 keys and values", options.fp8_kv, config.fp8_kv),
        )
        if compiled != asked
    ]
    if config.sampling_candidates not in (None, 0, options.sampling_candidates):
        wrong.append(f"sampling_candidates is {options.sampling_candidates}, asked for {config.sampling_candidates}")
    for field in ("max_drafts", "max_proposals"):
        if getattr(config, field) > getattr(options, field):
            wrong.append(f"{field} is {getattr(options, field)}, asked for {getattr(config, field)}")
    if config.max_model_len > options.max_model_len:
        wrong.append(f"max_model_len is {options.max_model_len}, asked for {config.max_model_len}")
    if wrong:
        raise ConfigError(
            "artifact",
            str(config.artifact),
            f"was compiled for other sizes: {'; '.join(wrong)}",
            "Start with the artifact's sizes, or compile again",
        )


NOT_COMPILED = ("model_type", "max_position_embeddings", "num_mtp_layers", "eos_token_ids")
"""Fields of a description that no graph depends on."""


def check_model(config: RuntimeConfig, asked: ModelConfig, compiled: ModelConfig) -> None:
    """Raises ConfigError naming every field in which the graphs were compiled for another network than is described."""
    wrong = [
        f"{field.name} is {getattr(compiled, field.name)!r}, asked for {getattr(asked, field.name)!r}"
        for field in fields(ModelConfig)
        if field.name not in NOT_COMPILED and getattr(compiled, field.name) != getattr(asked, field.name)
    ]
    if wrong:
        raise ConfigError(
            "artifact",
            str(config.artifact),
            f"was compiled for another network: {'; '.join(wrong)}",
            "Remove the override, or change config.json and compile again",
        )


def _result(row: Row, answer: Answer) -> RowResult:
    if row.output is Output.NOTHING:
        return RowResult()
    if row.output is not Output.TOKEN:
        return RowResult(logits=answer.logits.fetch()[: 1 + len(row.drafts)])
    tokens = list(answer.tokens[: 1 + len(row.drafts)])
    left = [place for place, token in enumerate(tokens) if token == UNDECIDED]
    if left:
        how = row.sampling
        drawn = draw(answer.logits.fetch()[left], [how and how.at(place) for place in left])
        for place, token in zip(left, drawn, strict=True):
            tokens[place] = token
    return RowResult(tokens=verified(row.drafts, tokens))


def _describe(step: Step) -> str:
    tokens = sum(len(row.tokens) + len(row.drafts) for row in step.rows)
    return f"a step of {len(step.rows)} rows and {tokens} tokens"
