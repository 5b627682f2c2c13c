"""What plain operations of a graph read, multiply and wait for. Everything is modelled."""

from __future__ import annotations

from dataclasses import dataclass

from ..checkpoint.names import mtp_shapes, text_shapes
from ..checkpoint.sharding import Part, rank_weights
from ..checkpoint.weight_format import QUANTISED
from ..config import BLOCK_SIZE, LayerType, ModelConfig
from ..devices import NeuronKernels
from ..graph.profile import Profile
from .rates import Phase, Rates

SCORE_BYTES = 40
"""Traffic of one attention score in plain operations: written and read as fp32 by product, mask, softmax and cast."""

SCORE_OPERATIONS = 6
"""VectorE passes over it: scale and mask, maximum, difference, sum, division, cast."""

GATHERED = 3
"""How often a gathered key or value passes HBM: read, written, read."""

MLP = (".mlp.",)
DELTANET = (".mixer.in_proj_qkvz.", ".mixer.in_proj_ba.", ".mixer.out_proj.")
ATTENTION = (".mixer.in_proj_qgkv.", ".mixer.o_proj.")
"""Projections of a layer that kernels have: of its feed-forward block, of a mixer of either kind."""

MTP_KEYS = ("mtp.fc.", "mtp.layer.mixer.in_proj")
"""Projections of the draft layer that its keys and values take."""


@dataclass(frozen=True, slots=True)
class PlainOperations:
    """Those of a profile of a model, on one rank."""

    profile: Profile
    model: ModelConfig
    rates: Rates

    def attention(self, name: str, scores: int, passed: int) -> Phase:
        """passed: tokens whose keys and values pass HBM, each time counted."""
        return Phase(
            name,
            flops=4 * scores * self.model.head_dim,
            hbm_bytes=scores * SCORE_BYTES + passed * self.kv_bytes,
            vector_elements=scores * SCORE_OPERATIONS,
            needed_bytes=passed / GATHERED * self.kv_bytes,
        )

    def matrices(
        self, tokens: int, asked: int, drafting: bool, without: tuple[str, ...] = (), head: bool = True
    ) -> Phase:
        """All projections of `tokens` tokens, of which `asked` results are asked for; weights are read once.

        Args:
            drafting: write the draft layer's keys and values too, for which the last layer runs every token.
            without: what kernels have of the layers, parts of names.
            head: the head among them.
        """
        last = f"layers.{self.model.num_layers - 1}."
        of_last = [f"{last}mlp."] + [f"{last}mixer.o_proj."] * self.attention_is_last
        used = ("layers.", "lm_head.") if head else ("layers.",)
        of_asked = ("lm_head.", *(() if drafting else of_last))
        drafted = MTP_KEYS if drafting else ()
        return self.products("weights", used + drafted, tokens, asked, of_asked, without=without)

    def products(
        self,
        name: str,
        used: tuple[str, ...],
        tokens: int,
        asked: int,
        of_asked: tuple[str, ...] = (),
        only: tuple[str, ...] = ("",),
        without: tuple[str, ...] = (),
    ) -> Phase:
        """Projections whose names begin with `used`; those with `of_asked` are of `asked` tokens.

        Args:
            only, without: parts of names, one of which a name has, or none if it is one of the layers'.
        """
        options, shapes = self.profile.options, text_shapes(self.model) | mtp_shapes(self.model)
        endings, drafting = QUANTISED[self.profile.weights], any(part.startswith("mtp.") for part in used)
        read = flops = fed = 0.0
        for held, weight in rank_weights(self.model, options.tp_degree, include_mtp=drafting).items():
            shape = weight.shape(shapes)
            of_layers = held.startswith("layers.")
            if len(shape) != 2 or not held.startswith(used) or not any(part in held for part in only):
                continue
            if of_layers and any(part in held for part in without):
                continue
            size = shape[0] * shape[1]
            in_fp8 = endings and held.endswith(endings) and weight.part is not Part.MTP
            read += size * (1 if in_fp8 else 2)
            fed += size if in_fp8 else 0
            flops += 2 * size * (asked if held.startswith(of_asked) else tokens)
        return Phase(name, flops=flops, hbm_bytes=read, fed=fed, streams=True)

    def activations(self, tokens: int, asked: int, stage: NeuronKernels = "nki") -> Phase:
        """What operations between the products read and write: norms, residuals, gates, convolution, SwiGLU.

        Numbers of two bytes: those of `tokens` tokens, and in the last layer those of the `asked` ones.

        Args:
            stage: "fused" for what is left of it: of attention layers that are no kernel, without their second norm and
                their feed-forward blocks.
        """
        model, rank = self.model, self.model.rank(self.profile.options.tp_degree)
        entry = 2 * model.hidden_size  # the first norm, of one in, one out
        rest = (2 + 2 * 3) * model.hidden_size  # the second norm; two additions of two in, one out
        # Routed experts' are counted with them: what every token has of a mixture is the shared one.
        inner = rank.intermediate_size if model.moe is None else rank.shared_intermediate_size
        rest += 3 * inner + 2 * (2 * inner)  # SwiGLU, and the products' outputs
        deltanet = 4 * rank.conv_channels + 6 * rank.num_value_heads * model.value_head_dim
        deltanet = deltanet if self.profile.options.stages.prefill == "torch" else 0  # convolution and gated norm
        queries, keys = (2 * heads * model.head_dim for heads in (rank.num_query_heads, rank.num_kv_heads))
        attention = 6 * (queries + keys)  # queries and gates, keys and values
        if stage == "fused":
            added = 3 * model.hidden_size  # two in, one out
            passed = self._plain_attention * (entry + attention + added)
            return Phase("activations", hbm_bytes=2 * tokens * passed, needed_bytes=0.0)
        passed = model.num_layers * entry + (model.num_layers - 1) * rest
        passed += len(model.deltanet_layers) * deltanet + len(model.attention_layers) * attention
        of_asked = rest
        if self.attention_is_last:  # of 6 passes, the input projection's output is the one of all tokens
            passed -= 5 * queries
            of_asked += 5 * queries
        return Phase("activations", hbm_bytes=2 * (tokens * passed + asked * of_asked), needed_bytes=0.0)

    def small_operations(self, kernels: NeuronKernels) -> Phase:
        """What plain operations of a few tokens take beside what they read, of blocks that are not all kernels.

        Half of a DeltaNet mixer's are kernels with "nki", taken for half of their time; an attention mixer's rate comes
        of a model whose attention was a kernel. What is left with "fused" is taken for one block's: the embedding,
        rotary angles, places of keys. A mixture is taken for two blocks, of which one scores, chooses and lays out.
        """
        layers, mixers = self.model.num_layers, len(self.model.deltanet_layers)
        every = (2.0 if self.model.moe is None else 3.0) * layers
        plain = {"torch": every, "nki": every - mixers / 2, "fused": 1.0 + self._plain_attention}[kernels]
        return Phase("small operations", fixed=plain * self.rates.half_layer)

    def collectives(self, tokens: int, asked: int, stage: NeuronKernels = "nki") -> Phase:
        """Two sums over the ranks a layer, through device memory: a rank reads and writes its parts.

        Those after the last layer's MLP and, if it is attention, after its output projection are of `asked` tokens.
        In a "fused" `stage` that of the embedding is left, and those of attention layers that are no kernel.
        """
        tp = self.profile.options.tp_degree
        if tp == 1:
            return Phase("collectives")
        count = 2 * self.model.num_layers
        of_asked = 1 + self.attention_is_last
        summed = (count - of_asked) * tokens + of_asked * asked
        moved = 2 * 2 * (tp - 1) / tp * self.model.hidden_size * 2
        if stage == "fused":
            count = 1 + self._plain_attention
            summed = count * tokens
        return Phase("collectives", hbm_bytes=summed * moved, fixed=count * self.rates.collective, needed_bytes=0.0)

    @property
    def _plain_attention(self) -> int:
        """Attention layers that are no kernel in a fused stage."""
        return 0 if self.profile.options.fused_attention else len(self.model.attention_layers)

    @property
    def attention_is_last(self) -> bool:
        return self.model.layer_types[-1] is LayerType.ATTENTION

    @property
    def kv_bytes(self) -> float:
        """Of one token and layer, on one rank."""
        spec = self.profile.options.cache_spec(self.model)
        return spec.block_bytes / BLOCK_SIZE / max(1, len(spec.kv_layers))

    @property
    def state_bytes(self) -> int:
        """Of one lane, on one rank."""
        return self.profile.options.cache_spec(self.model).lane_bytes
