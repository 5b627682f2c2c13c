"""The host side of a graph: rows of the step contract in, tokens and logits out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from neuronx_distributed_inference.models.model_wrapper import ModelWrapper

from ..graph.inputs import (
    DraftRow,
    GraphInputs,
    decode_inputs,
    draft_inputs,
    empty_decode,
    empty_draft,
    empty_prefill,
    empty_verify,
    graph_inputs,
    prefill_inputs,
    verify_inputs,
)
from ..graph.logits import Logits
from ..graph.options import GraphOptions
from ..step import Row
from .instance import Qwen36ModelInstance
from .model import DRAFT_STAGE


class Qwen36ModelWrapper(ModelWrapper):
    """Lays rows out for the graphs of one tag.

    NxDI's own padding is not used: it fills a bucket with prefix that has been computed, and it gives padded rows the
    ids of other sequences and a copy of the first row's token. Here padding is masked and writes to scratch.

    Attributes:
        lazy_logits: leave logits on the device until they are read; set by the runtime.
    """

    lazy_logits = False

    @cached_property
    def options(self) -> GraphOptions:
        options: GraphOptions = self.neuron_config.options
        return options

    @property
    def is_prefill(self) -> bool:
        return bool(self.neuron_config.is_prefill_stage)

    @property
    def verifies(self) -> bool:
        """Whether the graphs verify drafts."""
        return not self.is_prefill and self.neuron_config.n_active_tokens > 1

    @property
    def drafts(self) -> bool:
        """Whether the graphs draft."""
        return bool(getattr(self.neuron_config, DRAFT_STAGE, False))

    @property
    def draws(self) -> bool:
        """Whether the graphs draw tokens, and so take sampling parameters."""
        return bool(self.options.sampling_candidates)

    def input_generator(self) -> list[tuple[torch.Tensor, ...]]:
        """One example a bucket, as plain tuples, which is what NxD's builder takes apart.

        They run on scratch alone, so NxDI's warm-up with them leaves no trace.
        """
        options, draws = self.options, self.draws
        if self.is_prefill:
            pairs = options.buckets.prefill
            return [graph_inputs(empty_prefill(pair, options.prefill_commits, draws)) for pair in pairs]
        if self.drafts:
            return [graph_inputs(empty_draft(rows, size, drafts)) for drafts, rows, size in options.draft_graphs]
        commits = options.decode_commits
        if self.verifies:
            drafts, graphs = options.max_drafts, options.decode_graphs
            return [graph_inputs(empty_verify(rows, size, drafts, commits, draws)) for rows, size in graphs]
        return [graph_inputs(empty_decode(rows, size, commits, draws)) for rows, size in options.decode_graphs]

    def get_model_instance(self) -> Qwen36ModelInstance:
        return Qwen36ModelInstance(model_cls=self.model_cls, config=self.config, **self.model_init_kwargs)

    def forward(self, rows: Sequence[Row], accepted: Sequence[int] = ()) -> tuple[torch.Tensor, Logits]:
        """Run rows that fit one call: one for context encoding, else up to `num_lanes` rows of one certain token.

        Args:
            accepted: for graphs that verify drafts, how many of its lane's pending ones each row takes in.
        Returns:
            Tokens int32 [rows, places] as the rows' sampling asks, and the logits that they are drawn from (see
            `NeuronQwen36Model.forward`). What of the logits is read comes from the device, where `lazy_logits` leaves
            them.
        """
        return self.call(graph_inputs(self.lay_out(rows, accepted)), len(rows))

    def draft(self, rows: Sequence[DraftRow]) -> torch.Tensor:
        """Make drafts of up to `num_lanes` rows: int32 [rows, drafts], what a row did not want among them."""
        return self.call(graph_inputs(self.lay_out_drafts(rows)), len(rows))[0]

    def call(self, inputs: tuple[torch.Tensor, ...], count: int) -> tuple[torch.Tensor, Logits]:
        """Run the graph of these shapes; `count` is the number of rows that are wanted back."""
        if self.model is None:
            raise RuntimeError(f"{self.tag} was called before it was loaded")
        if self.lazy_logits:
            # NxDI's call that leaves outputs where they are: [rank][output], the same tokens and logits of every rank.
            tokens, logits = self._process_ranked_inputs(*inputs)[0]
        else:
            tokens, logits = self.model(*inputs)
        return tokens.to("cpu")[:count], Logits(logits, range(count))

    def lay_out(self, rows: Sequence[Row], accepted: Sequence[int] = ()) -> GraphInputs:
        """The rows in the shape of the smallest bucket that takes them."""
        options = self.options
        if self.is_prefill:
            (row,) = rows
            bucket = options.buckets.prefill_for(row.start, len(row.tokens))
            return prefill_inputs(row, bucket, options.prefill_commits, options.num_lanes, self.draws)
        size = options.buckets.decode_for(max(row.reach for row in rows))
        batch = options.decode_rows_for(len(rows))
        if self.verifies:
            counts = options.max_drafts, options.decode_commits, options.num_lanes
            return verify_inputs(rows, accepted, batch, size, *counts, self.draws)
        return decode_inputs(rows, batch, size, options.decode_commits, options.num_lanes, self.draws)

    def lay_out_drafts(self, rows: Sequence[DraftRow]) -> GraphInputs:
        """The rows in the shape of the smallest draft graph that takes them."""
        size = self.options.buckets.decode_for(max(row.reach for row in rows))
        return draft_inputs(rows, self.options.decode_rows_for(len(rows)), size, max(row.count for row in rows))
