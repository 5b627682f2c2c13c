"""The application: the graphs' wrappers, their compiler arguments, and the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from neuronx_distributed_inference.models.model_base import NeuronBaseForCausalLM
from neuronx_distributed_inference.models.model_wrapper import (
    CONTEXT_ENCODING_MODEL_TAG,
    SPECULATION_MODEL_TAG,
    TOKEN_GENERATION_MODEL_TAG,
)
from safetensors.torch import save_file
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..checkpoint.kv_scales import load_kv_scales
from ..checkpoint.load import load_weights
from ..checkpoint.names import canonical_name
from ..checkpoint.sharding import arrange
from ..checkpoint.weight_format import WeightFormat
from ..config import ModelConfig
from ..errors import ConfigError
from ..graph.batch import batch_rows
from ..graph.compiler import CompilerOptions, decode_options, prefill_options
from ..graph.inputs import DraftRow, decode_groups, prefill_pieces
from ..graph.logits import Logits
from ..graph.options import GraphOptions
from ..ops.attention import rotary_turns
from ..step import Row
from .config import Qwen36InferenceConfig
from .fp8_mlp import lay_out
from .fused import pack_weights
from .model import DRAFT_STAGE, NETWORK, RANK_PARAMETERS, TURNS, NeuronQwen36Model
from .wrapper import Qwen36ModelWrapper

DRAFT_MODEL_TAG = "draft_model"
"""NxDI has no tag for graphs that only draft."""


class Answer(NamedTuple):
    """What one row gave back.

    Attributes:
        tokens: drawn as the row's sampling asks, `ops.sampling.UNDECIDED` where the graph's candidates do not tell:
            the token after the row, or where drafts are verified one at each place of the graph.
        logits: of one row, at the same places.
    """

    tokens: tuple[int, ...]
    logits: Logits

    @property
    def token(self) -> int:
        """The token after the row's last certain one."""
        return self.tokens[0]


class NeuronQwen36ForCausalLM(NeuronBaseForCausalLM):
    """Qwen3.6 as an NxDI application.

    Attributes:
        kv_scales: file of the scales of FP8 keys and values; None for those in the checkpoint's folder.
    """

    kv_scales: Path | None = None

    _model_cls = NeuronQwen36Model
    context_encoding_model: Qwen36ModelWrapper
    token_generation_model: Qwen36ModelWrapper
    speculation_model: Qwen36ModelWrapper
    draft_model: Qwen36ModelWrapper

    @classmethod
    def get_config_cls(cls) -> type[Qwen36InferenceConfig]:
        return Qwen36InferenceConfig

    def get_model_wrapper_cls(self) -> type[Qwen36ModelWrapper]:
        return Qwen36ModelWrapper

    @cached_property
    def options(self) -> GraphOptions:
        options: GraphOptions = self.neuron_config.options
        return options

    # ---- the graphs --------------------------------------------------------------------------------------------------

    def enable_context_encoding(self, **model_init_kwargs: Any) -> None:
        options = self.options
        pairs = [[pair.active, pair.prefix] for pair in options.buckets.prefill]
        compiler = prefill_options(options.max_model_len, options.logical_cores)
        self.context_encoding_model = self._add(
            CONTEXT_ENCODING_MODEL_TAG, pairs, compiler, None, model_init_kwargs, batch_size=1, is_prefill_stage=True
        )

    def enable_token_generation(self, enable_wlt_optimization: bool = True, **model_init_kwargs: Any) -> None:
        options = self.options
        pairs = [[1, size] for _, size in options.decode_graphs]
        compiler = decode_options(options.max_model_len, options.logical_cores)
        # The layout of the weights is chosen for the first decode graph: it is what reads them most often.
        priority = 0 if enable_wlt_optimization else None
        self.token_generation_model = self._add(
            TOKEN_GENERATION_MODEL_TAG,
            pairs,
            compiler,
            priority,
            model_init_kwargs,
            batch_size=options.num_lanes,
            is_prefill_stage=False,
            n_active_tokens=1,
        )

        if options.max_drafts:  # beside it: NxDI itself would make one of the two
            self.enable_speculation()
        if options.max_proposals:
            self.enable_drafting()

    def enable_speculation(self, enable_wlt_optimization: bool = False, **model_init_kwargs: Any) -> None:
        """The graphs that verify drafts, as many as decode. Weights are laid out for decoding all the same."""
        options = self.options
        pairs = [[1 + options.max_drafts, size] for _, size in options.decode_graphs]
        compiler = decode_options(options.max_model_len, options.logical_cores)
        self.speculation_model = self._add(
            SPECULATION_MODEL_TAG,
            pairs,
            compiler,
            0 if enable_wlt_optimization else None,
            model_init_kwargs,
            batch_size=options.num_lanes,
            is_prefill_stage=False,
            n_active_tokens=1 + options.max_drafts,
        )

    def enable_drafting(self, **model_init_kwargs: Any) -> None:
        """The graphs that draft: the draft layer and the head, once for each draft."""
        options = self.options
        pairs = [[drafts, size] for drafts, _, size in options.draft_graphs]
        compiler = decode_options(options.max_model_len, options.logical_cores)
        settings = {"batch_size": options.num_lanes, "is_prefill_stage": False, "n_active_tokens": 1, DRAFT_STAGE: True}
        self.draft_model = self._add(DRAFT_MODEL_TAG, pairs, compiler, None, model_init_kwargs, **settings)

    def _add(
        self,
        tag: str,
        buckets: list[list[int]],
        compiler: CompilerOptions,
        priority: int | None,
        model_init_kwargs: dict[str, Any],
        **settings: Any,
    ) -> Qwen36ModelWrapper:
        config = copy.deepcopy(self.config)
        for name, value in {"buckets": buckets, **settings}.items():
            setattr(config.neuron_config, name, value)
        wrapper = Qwen36ModelWrapper(
            config=config,
            model_cls=self._model_cls,
            tag=tag,
            compiler_args=compiler.arguments(),
            priority_model_idx=priority,
            model_init_kwargs=model_init_kwargs,
        )
        self.models.append(wrapper)
        return wrapper

    # ---- the weights -------------------------------------------------------------------------------------------------

    def rank_state_dict(self, rank: int) -> dict[str, torch.Tensor]:
        """The weights of one rank, by the names of the traced module's parameters; only they are read from the files.

        NxD's own sharding is not used: it needs all ranks' weights in memory at once, and it splits the parameters of
        its own layers only, not those that a DeltaNet layer holds by itself.
        """
        options = self.options
        weights = load_weights(
            self.model_path,
            self.config.model_config,
            tp=options.tp_degree,
            rank=rank,
            dtype=options.torch_dtype,
            include_mtp=options.draft_layer,
            keep_fp8=options.weights != WeightFormat.BF16,
        )
        if options.mlp_kernel and self.config.model_config.moe is None:
            weights = lay_out(weights)
        if options.stages.fused:
            joined = options.joined_layers(self.config.model_config)
            weights = pack_weights(weights, options.logical_cores, options.fused_attention, joined)
        if options.fp8_kv:
            model = self.config.model_config
            scales = load_kv_scales(Path(self.model_path), model, options.draft_layer, self.kv_scales)
            weights |= scales.weights(model, options.tp_degree, rank)
        return in_module(weights, torch.tensor([rank], dtype=torch.int32), self.config.model_config)

    def shard_weights(self, compiled_model_path: str, debug: bool = False, pre_shard_weights_hook: Any = None) -> None:
        """Write every rank's weights beside the compiled graphs, one rank in memory at a time."""
        if pre_shard_weights_hook is not None:
            pre_shard_weights_hook(self)
        if self.neuron_config.skip_sharding or not self.neuron_config.save_sharded_checkpoint:
            return
        folder = Path(compiled_model_path) / "weights"
        folder.mkdir(parents=True, exist_ok=True)
        for rank in range(self.options.tp_degree):
            # A file cannot hold one tensor under two names, which tied weights are.
            state = {name: tensor.clone() for name, tensor in self.rank_state_dict(rank).items()}
            save_file(state, folder / f"tp{rank}_sharded_checkpoint.safetensors")

    def load_weights(
        self, compiled_model_path: str, start_rank_id: int | None = None, local_ranks_size: int | None = None
    ) -> None:
        """Give every rank its weights: from the files beside the graphs if there are any, else from the checkpoint."""
        if self.neuron_config.save_sharded_checkpoint:
            super().load_weights(compiled_model_path, start_rank_id, local_ranks_size)
            return
        first = self.neuron_config.start_rank_id if start_rank_id is None else start_rank_id
        count = self.neuron_config.local_ranks_size if local_ranks_size is None else local_ranks_size
        weights = [self.rank_state_dict(rank) for rank in range(first, first + count)]
        self.traced_model.nxd_model.initialize(weights, torch.tensor([first], dtype=torch.int32))

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, torch.Tensor], config: Qwen36InferenceConfig
    ) -> dict[str, torch.Tensor]:
        """All ranks' weights in one, rank after rank, so that equal cuts are the ranks' shares."""
        names = {name: canonical_name(name if name.startswith("model.") else f"model.{name}") for name in state_dict}
        tensors = {own: state_dict[name] for name, own in names.items() if own is not None}
        options = config.neuron_config.options
        if options.fp8_kv:
            problem = "has scales of its own, which NxDI's loader of whole checkpoints does not know"
            raise ConfigError("kv_cache_dtype", options.kv_cache_dtype, problem, "Load through the runtime")
        weights = arrange(tensors, config.model_config, options.tp_degree, options.torch_dtype, options.draft_layer)
        return in_module(weights, torch.arange(options.tp_degree, dtype=torch.int32), config.model_config)

    @staticmethod
    def update_state_dict_for_tied_weights(state_dict: dict[str, torch.Tensor]) -> None:
        """Nothing: `arrange` gives the head in any case."""

    # ---- running -----------------------------------------------------------------------------------------------------

    def prefill(self, row: Row) -> Answer:
        """Run one row of any number of tokens, cut where buckets make it."""
        options = self.options
        *before, last = prefill_pieces(row, options.buckets, options.prefill_commits)
        for piece in before:
            self.context_encoding_model([piece])
        (answer,) = answers(self.context_encoding_model([last]))
        return answer

    def decode(self, rows: Sequence[Row]) -> Iterator[Answer]:
        """Run rows of one token, in as many calls as it takes.

        The next call is made once the answers of the one before were taken: a device may use the memory of a graph's
        outputs again, so logits must be fetched before then.
        """
        options = self.options
        for group in decode_groups(rows, options.num_lanes, options.decode_commits):
            yield from answers(self.token_generation_model(group))

    def verify(self, rows: Sequence[Row], accepted: Sequence[int]) -> Iterator[Answer]:
        """Run rows of one certain token and drafts, as `decode` does.

        Args:
            accepted: how many of its lane's pending drafts each row takes in.
        """
        options = self.options
        behind = {id(row): count for row, count in zip(rows, accepted, strict=True)}
        for group in decode_groups(rows, options.num_lanes, options.decode_commits):
            yield from answers(self.speculation_model(group, [behind[id(row)] for row in group]))

    def draft(self, rows: Sequence[DraftRow]) -> list[tuple[int, ...]]:
        """As many drafts of each row as it wants, one at least; the rows have different lanes."""
        return [
            tuple(found[: row.count]) for row, found in zip(rows, self.draft_model.draft(rows).tolist(), strict=True)
        ]

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        seq_ids: torch.Tensor | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """A batch of prompts, or of next tokens, as NxDI's generation adapter gives it; see `batch_rows`.

        `position_ids` is taken from `others`: were it in the signature, transformers 5 would replace the adapter's by
        its own, which count padding on the right as tokens.

        Returns:
            `logits` fp32 [batch, 1, vocab] after each row's last token, and `tokens` int32 [batch, 1], the most likely.
        """
        position_ids = others.get("position_ids")
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        rows = batch_rows(self.options, input_ids, attention_mask, position_ids, seq_ids)
        single = all(len(row.tokens) == 1 for row in rows)
        found = self.decode(rows) if single else (self.prefill(row) for row in rows)
        tokens, logits = zip(*((answer.token, answer.logits.fetch()) for answer in found), strict=True)
        self.kv_cache_populated = True
        output = CausalLMOutputWithPast(logits=torch.stack(logits))
        output.tokens = torch.tensor(tokens, dtype=torch.int32).view(-1, 1)
        return output


def answers(result: tuple[torch.Tensor, Logits]) -> list[Answer]:
    """What a wrapper gave back, a row an answer."""
    tokens, logits = result
    return [Answer(tuple(found), logits.row(index)) for index, found in enumerate(tokens.tolist())]


def in_module(weights: dict[str, torch.Tensor], ranks: torch.Tensor, model: ModelConfig) -> dict[str, torch.Tensor]:
    """Runtime weights by the traced module's names, with what its layers hold as weights: ranks, rotary frequencies."""
    named = {NETWORK + name: tensor for name, tensor in weights.items()} | {TURNS: rotary_turns(model.rope)}
    return named | {name: ranks.clone() for name in RANK_PARAMETERS}
