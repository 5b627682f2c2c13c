"""The traced module: the network with NxD's layers, and the memory it takes and gives back."""

from __future__ import annotations

import torch
from neuronx_distributed_inference.models.model_base import NeuronBaseModel

from ..checkpoint.weight_format import WeightFormat
from ..devices import GraphKernels
from ..graph.draft import make_drafts, run_tokens
from ..graph.inputs import DecodeInputs, DraftInputs, PrefillInputs, VerifyInputs
from ..graph.memory import GraphCache, StepMemory
from ..graph.state import GraphDecode, GraphDraft, GraphPrefill, GraphVerify
from ..model import Qwen36Model
from ..model.attention import add_kv_scales
from ..model.norm import RMSNorm, set_gated_norm
from ..ops.kernels import open_kernels
from ..ops.sampling import draw
from .candidates import PlainScores, Scores, SearchedScores
from .config import Qwen36InferenceConfig
from .experts import set_fp8_experts
from .fp8_mlp import set_mlp
from .fused import FusedHead, set_fused
from .layers import NxdLayers

NETWORK = "network."
"""What the network's parameter names start with in this module."""

DRAFT_STAGE = "is_draft_stage"
"""Setting that tells a draft graph, beside NxDI's own `is_prefill_stage`."""

RANK_PARAMETERS = (f"{NETWORK}embed_tokens.rank_util.rank", "rank_util.rank")
"""Where the module holds the number of its rank."""

TURNS = f"{NETWORK}rotary_turns"
"""Where it holds the frequencies of the rotary embedding."""


class NeuronQwen36Model(NeuronBaseModel):
    """One module for every kind of graph; which one is decided by the stage that it is built for, never by a shape.

    NxDI's own forward is not used: it feeds a computed prefix again to fill a bucket, which a recurrence must not see,
    and its path without kernels does not mask unused prefix.
    """

    def setup_attr_for_model(self, config: Qwen36InferenceConfig) -> None:
        self.on_device_sampling = False
        self.tp_degree = config.neuron_config.tp_degree
        self.hidden_size = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.max_batch_size = config.neuron_config.max_batch_size
        self.buckets = config.neuron_config.buckets
        self.is_prefill = bool(config.neuron_config.is_prefill_stage)
        self.verifies = not self.is_prefill and config.neuron_config.n_active_tokens > 1
        self.drafts: bool = getattr(config.neuron_config, DRAFT_STAGE, False)
        self.candidates: int = config.neuron_config.options.sampling_candidates

    def init_model(self, config: Qwen36InferenceConfig) -> None:
        default = torch.get_default_dtype()
        torch.set_default_dtype(config.neuron_config.torch_dtype)  # of parameters that declare no type of their own
        try:
            layers, drafting = NxdLayers(config.neuron_config), config.neuron_config.options.draft_layer
            self.network = Qwen36Model(config.model_config, layers, include_mtp=drafting)
            self.network.hold_turns()
        finally:
            torch.set_default_dtype(default)
        options = config.neuron_config.options
        if options.fp8_kv:
            add_kv_scales(self.network)
        stages = options.stages
        choice = stages.prefill if self.is_prefill else stages.verify if self.verifies else stages.decode
        form: GraphKernels = "torch" if choice == "torch" else "nki"
        self.kernels = open_kernels(form, options.logical_cores, options.dma_transposes)
        if config.model_config.moe is not None:
            if options.weights != WeightFormat.BF16:
                set_fp8_experts(self.network)
        elif options.mlp_kernel:
            set_mlp(self.network, config.model_config, options)
        if stages.fused:
            set_fused(self.network, config, layers, choice == "fused")
        set_gated_norm(self.network, self.kernels.gated_norm)

    def init_inference_optimization(self, config: Qwen36InferenceConfig) -> None:
        self.kv_mgr = GraphCache(config.neuron_config.options.cache_spec(config.model_config))
        self.requires_grad_(False)  # NxD's layers ask for gradients, and intermediates are written in place

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Run one graph.

        Args:
            inputs: the fields of `PrefillInputs`, `DecodeInputs`, `VerifyInputs` or `DraftInputs`.
        Returns:
            Tokens int32 [rows, places] as the rows' sampling asks: `ops.sampling.UNDECIDED` where the candidates do not
            tell, the most likely ones in a graph without sampling parameters. Then the logits that they are drawn from,
            fp32 [rows, places, vocab], then every state in the order of `GraphCache.states`. Places are a row's tokens
            in a graph that verifies drafts, and its last token in others. A draft graph gives drafts int32 [rows,
            drafts] and their logits fp32 in their place: NxD takes the outputs of every graph apart as the first's.
        """
        memory = self.kv_mgr.open()
        if self.drafts:
            drafting = GraphDraft(memory, DraftInputs(*inputs), self.kernels)
            drafts, found = make_drafts(self.network, drafting, self._most_likely)
            memory.keep_all_but(memory.hidden)
            return [drafts, found, *memory.outputs()]
        x, step = self._run(memory, inputs)
        if not self.verifies:
            memory.keep_pending()
        rows, places = x.shape[:2]
        scores = self._scores(x, self.network.norm)
        logits = scores.logits()
        best = scores.best(logits)
        if step.sampling is None:
            tokens = best.to(torch.int32)
        else:
            values, ids, bound = scores.ranked(self.candidates)
            tokens = draw(logits, values, ids, best, step.sampling.view(rows * places, -1), bound)
        return [tokens.view(rows, places), logits.view(rows, places, -1), *memory.outputs()]

    def _run(
        self, memory: StepMemory, inputs: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, PrefillInputs | DecodeInputs | VerifyInputs]:
        """Hidden states before the final norm, [rows, places, hidden], of a graph that runs tokens, and its inputs."""
        if self.is_prefill:
            prefill = GraphPrefill(memory, PrefillInputs(*inputs), self.kernels)
            return run_tokens(self.network, prefill, prefill.last), prefill.step
        if self.verifies:
            verify = GraphVerify(memory, VerifyInputs(*inputs), self.kernels)
            return run_tokens(self.network, verify), verify.step
        decode = GraphDecode(memory, DecodeInputs(*inputs), self.kernels)
        return run_tokens(self.network, decode), decode.step

    def _most_likely(self, x: torch.Tensor, norm: RMSNorm) -> tuple[torch.Tensor, torch.Tensor]:
        """Of hidden states [rows, 1, hidden] before a norm tokens and their logits, [rows, 1]."""
        tokens, logits = self._scores(x, norm).most_likely()
        return tokens.view(-1, 1), logits.view(-1, 1)

    def _scores(self, x: torch.Tensor, norm: RMSNorm) -> Scores:
        """What the head finds of hidden states [rows, places, hidden] before a norm, a row a place."""
        head = self.network.lm_head
        if isinstance(head, FusedHead):
            return SearchedScores(head.search(x.flatten(0, 1), norm), self.tp_degree)
        return PlainScores(head(norm(x)).flatten(0, 1), self.tp_degree)
