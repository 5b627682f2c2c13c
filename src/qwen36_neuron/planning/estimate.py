"""The phases of a prefill chunk and of a decode step of one rank, and the times that follow. Everything is modelled.

Phases follow one another; nothing overlaps between them. The host, the sampler and the server are not counted. A
prefill chunk is asked for the result of its last token: of the last layer, all its tokens pass the first norm, the
input projection and what leaves keys, values or a state, and one token the rest, as in `model.decoder`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nki_kernels.interpreter.price_list import Level

from ..checkpoint.names import mtp_shapes, text_shapes
from ..checkpoint.sharding import Part, rank_weights
from ..checkpoint.weight_format import QUANTISED
from ..config import BLOCK_SIZE, LayerType, ModelConfig
from ..graph.buckets import PrefillBucket
from ..graph.profile import Profile
from .delta_rule import DeltaRuleCost
from .kernel_prices import KernelPrices
from .rates import Phase, Rates

SCORE_BYTES = 40
"""Traffic of one attention score in plain operations: written and read as fp32 by product, mask, softmax and cast."""

SCORE_OPERATIONS = 6
"""VectorE passes over it: scale and mask, maximum, difference, sum, division, cast."""

GATHERED = 3
"""How often a gathered key or value passes HBM: read, written, read."""

STATE_OPERATIONS = 5
"""VectorE passes over the recurrent state for one token: decay (1), prediction (2, a product and a sum), update (2)."""

ABSORB_OPERATIONS = 2 * 2
"""The same for taking accepted drafts in, however many: decay and sum, of the lane's state and of a checkpoint's."""

FUSED = (".mlp.", ".mixer.in_proj_qkvz.", ".mixer.in_proj_ba.", ".mixer.out_proj.")
"""Projections of a layer that fused kernels have: the feed-forward block's, then those of a DeltaNet mixer."""

MTP_KEYS = ("mtp.fc.", "mtp.layer.mixer.in_proj")
"""Projections of the draft layer that its keys and values take."""


def single_sequence(profile: Profile) -> Profile:
    """The profile as published baselines are measured: one sequence, no checkpoints, plain operations."""
    alone = replace(profile.options, num_lanes=1, num_slots=0, decode_rows=(), kernels="torch")
    return replace(profile, options=alone)


@dataclass(frozen=True)
class Estimate:
    """A profile of a model on one machine, with a price for the delta rule over a prompt.

    Attributes:
        level: at which kernels are priced.
    """

    profile: Profile
    model: ModelConfig
    delta_rule: DeltaRuleCost
    rates: Rates = field(default_factory=Rates)
    level: Level = "centre"

    def at(self, level: Level) -> Estimate:
        """The same with the kernels' prices at their cheapest, centre or dearest."""
        return replace(self, delta_rule=self.delta_rule.at(level), rates=self.rates.at(level), level=level)

    # ---- what is asked ---------------------------------------------------------------------------------------------

    def first_token(self, prompt: int) -> float:
        """Seconds of prefill until the first token of a prompt without a reusable prefix."""
        return sum(phase.seconds(self.rates) for phase in self.prompt_phases(prompt))

    def token(self, batch: int, context: int) -> float:
        """Seconds of a decode step of `batch` rows that hold up to `context` tokens."""
        return sum(phase.seconds(self.rates) for phase in self.token_phases(batch, context))

    def token_phases(self, batch: int, context: int) -> list[Phase]:
        """Its phases; of more rows than there are lanes, those of several calls."""
        steps, left = divmod(batch, self.profile.options.num_lanes)
        counts = [self.profile.options.num_lanes] * steps + [left] * bool(left)
        return [phase for count in counts for phase in self.decode_phases(count, context)]

    def prompt_phases(self, prompt: int) -> list[Phase]:
        """The phases of all chunks of a prompt, cut as the application cuts it."""
        buckets = self.profile.options.buckets
        phases, start = [], 0
        while start < prompt:
            bucket = buckets.prefill_for(start, prompt - start)
            phases += self.prefill_phases(bucket)
            start += bucket.active
        return phases

    # ---- a chunk ---------------------------------------------------------------------------------------------------

    def prefill_phases(self, bucket: PrefillBucket) -> list[Phase]:
        """One context-encoding call, padding included."""
        model, options, new = self.model, self.profile.options, bucket.active
        rank = model.rank(options.tp_degree)
        layers, attention = len(model.deltanet_layers), len(model.attention_layers)
        # The draft layer is shown the last layer's result of every token. Without it, one token alone asks in that
        # layer, like a decoded one: of a gathered cache.
        whole, asked = options.draft_layer, new if options.draft_layer else 1
        alone = int(self._attention_is_last and not whole)
        states = 1 + 1 + options.prefill_commits if options.num_slots else 2
        return [
            self._matrices(new, 1, whole),
            self._prompt_attention(attention - alone, alone, new, bucket.prefix),
            Phase(
                "delta rule",
                fixed=layers * self.delta_rule.seconds(model, rank, new),
                fixed_bound=self.delta_rule.bound(model, rank),
            ),
            Phase("states", hbm_bytes=2 * states * self._state_bytes),
            self._activations(new, asked),
            self._collectives(new, asked),
        ]

    def decode_phases(self, batch: int, context: int, drafts: int = 0) -> list[Phase]:
        """One token-generation call of up to `num_lanes` rows: every row of its graph is computed, in use or not.

        Args:
            drafts: that each row has verified. The graph is taken for one with the draft layer then.
        """
        options = self.profile.options
        return self.step_phases(options.decode_rows_for(batch), options.buckets.decode_for(context), drafts)

    def step_phases(self, rows: int, held: int, drafts: int = 0) -> list[Phase]:
        """One call of a graph for so many rows that hold so many tokens, whether the profile has one or not."""
        model, options, tokens = self.model, self.profile.options, rows * (1 + drafts)
        fused = (options.stages.verify if drafts else options.stages.decode) == "fused"
        return [
            *(self._fused_blocks(tokens) if fused else []),
            self._matrices(tokens, tokens, bool(drafts) or options.draft_layer, FUSED if fused else ()),
            self._row_attention("attention", len(model.attention_layers), rows, 1 + drafts, held),
            self._row_states(rows, 1 + drafts),
            self._activations(tokens, tokens, fused),
            self._collectives(tokens, tokens, fused),
            self._small_operations(fused),
        ]

    def draft_phases(self, batch: int, context: int) -> list[Phase]:
        """One draft of each of up to `num_lanes` rows, of which all of the graph's are computed.

        The sums over the ranks are those of the layer's attention and MLP and of the embedding; its first projection,
        and the best logit, are gathered.
        """
        options = self.profile.options
        return self.draft_step_phases(options.decode_rows_for(batch), options.buckets.decode_for(context))

    def draft_step_phases(self, rows: int, held: int) -> list[Phase]:
        """The same of a graph for so many rows that hold so many tokens."""
        options = self.profile.options
        layer = self._row_attention("draft: attention", 1, rows, 1, held)
        sums = Phase("draft: collectives", fixed=5 * self.rates.collective if options.tp_degree > 1 else 0.0)
        return [self._products("draft: weights", ("mtp.", "lm_head."), rows, rows), layer, sums]

    # ---- what has two forms: kernels, and plain operations ---------------------------------------------------------

    def _prompt_attention(self, whole: int, alone: int, new: int, prefix: int) -> Phase:
        """Attention of a chunk: of all its tokens in `whole` layers, of the last one in those `alone`."""
        held, kernels = prefix + new, self._kernels
        if kernels:
            seconds, bound = kernels.attention(1, new, prefix)
            last = alone * kernels.attention(1, 1, held)[0] if alone else 0.0
            pairs = whole * (new * prefix + new * (new + 1) // 2) + alone * held
            heads = self.model.rank(self.profile.options.tp_degree).num_query_heads
            return Phase(
                "attention", 4.0 * pairs * heads * self.model.head_dim, (whole + alone) * held * self._kv_bytes,
                fixed=whole * seconds + last, fixed_bound=bound, priced=True,
            )  # fmt: skip
        scores = (whole * new + alone) * self.model.rank(self.profile.options.tp_degree).num_query_heads * held
        return self._plain_attention("attention", scores, (2 * whole + GATHERED * alone) * held)

    def _row_attention(self, name: str, layers: int, rows: int, tokens: int, held: int) -> Phase:
        """Attention of a few tokens of each row."""
        scores = layers * self.model.rank(self.profile.options.tp_degree).num_query_heads * rows * tokens * held
        if self._kernels:
            seconds, bound = self._kernels.attention(rows, tokens, held)
            flops, read = 4.0 * scores * self.model.head_dim, layers * rows * held * self._kv_bytes
            return Phase(name, flops, read, fixed=layers * seconds, fixed_bound=bound, priced=True)
        return self._plain_attention(name, scores, GATHERED * layers * rows * held)

    def _plain_attention(self, name: str, scores: int, passed: int) -> Phase:
        """passed: tokens whose keys and values pass HBM, each time counted."""
        return Phase(
            name,
            flops=4 * scores * self.model.head_dim,
            hbm_bytes=scores * SCORE_BYTES + passed * self._kv_bytes,
            vector_elements=scores * SCORE_OPERATIONS,
            needed_bytes=passed / GATHERED * self._kv_bytes,
        )

    def _row_states(self, rows: int, tokens: int) -> Phase:
        """The delta rule of a few tokens of each row; as a kernel with the convolution's, whose traffic is small."""
        model, options = self.model, self.profile.options
        layers = len(model.deltanet_layers)
        if self._kernels:
            seconds, bound = self._kernels.states(rows, tokens)
            passed = 2 * rows * self._state_bytes
            return Phase("states", hbm_bytes=passed, fixed=layers * seconds, fixed_bound=bound, priced=True)
        heads = model.rank(options.tp_degree).num_value_heads
        passes = STATE_OPERATIONS * tokens + (ABSORB_OPERATIONS if tokens > 1 else 0)
        commits = options.decode_commits if options.num_slots else 0
        return Phase(
            "states",
            hbm_bytes=2 * (rows + commits) * self._state_bytes,
            vector_elements=layers * rows * heads * model.key_head_dim * model.value_head_dim * passes,
        )

    def _fused_blocks(self, tokens: int) -> list[Phase]:
        """Feed-forward blocks and DeltaNet projections, a kernel each with its norm and its sum over the ranks."""
        model, kernels = self.model, self._kernels
        assert kernels is not None  # fused stages have them
        endings, mixers = QUANTISED[self.profile.weights], len(model.deltanet_layers)
        block, bound = kernels.feed_forward(tokens, "down_proj.weight" in endings)
        around, bound_around = kernels.delta_projections(tokens, "out_proj.weight" in endings)
        return [
            replace(
                self._products(name, ("layers.",), tokens, tokens, only=only),
                fixed=count * seconds,
                fixed_bound=found,
                priced=True,
            )
            for name, only, count, seconds, found in (
                ("feed-forward", FUSED[:1], model.num_layers, block, bound),
                ("DeltaNet projections", FUSED[1:], mixers, around, bound_around),
            )
        ]

    @property
    def _kernels(self) -> KernelPrices | None:
        options = self.profile.options
        if options.stages.prefill == "torch":
            return None
        return KernelPrices(self.model, options.tp_degree, options.logical_cores, self.level)

    # ---- the rest --------------------------------------------------------------------------------------------------

    def _matrices(self, tokens: int, asked: int, drafting: bool, without: tuple[str, ...] = ()) -> Phase:
        """All projections of `tokens` tokens, of which `asked` results are asked for; weights are read once.

        Args:
            drafting: write the draft layer's keys and values too, for which the last layer runs every token.
            without: what kernels have of the layers, parts of names.
        """
        last = f"layers.{self.model.num_layers - 1}."
        of_last = [f"{last}mlp."] + [f"{last}mixer.o_proj."] * self._attention_is_last
        used, of_asked = ("layers.", "lm_head."), ("lm_head.", *(() if drafting else of_last))
        drafted = MTP_KEYS if drafting else ()
        return self._products("weights", used + drafted, tokens, asked, of_asked, without=without)

    def _products(
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
        read = flops = 0.0
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
            flops += 2 * size * (asked if held.startswith(of_asked) else tokens)
        return Phase(name, flops=flops, hbm_bytes=read, streams=True)

    def _activations(self, tokens: int, asked: int, fused: bool = False) -> Phase:
        """What operations between the products read and write: norms, residuals, gates, convolution, SwiGLU.

        Numbers of two bytes: those of `tokens` tokens, and in the last layer those of the `asked` ones.

        Args:
            fused: what is left of it, attention layers' without their second norm and their feed-forward blocks.
        """
        model, rank = self.model, self.model.rank(self.profile.options.tp_degree)
        entry = 2 * model.hidden_size  # the first norm, of one in, one out
        rest = (2 + 2 * 3) * model.hidden_size  # the second norm; two additions of two in, one out
        rest += 3 * rank.intermediate_size + 2 * (2 * rank.intermediate_size)  # SwiGLU, and the products' outputs
        deltanet = 4 * rank.conv_channels + 6 * rank.num_value_heads * model.value_head_dim
        queries, keys = (2 * heads * model.head_dim for heads in (rank.num_query_heads, rank.num_kv_heads))
        attention = 6 * (queries + keys)  # queries and gates, keys and values
        if fused:
            added = 3 * model.hidden_size  # two in, one out
            passed = len(model.attention_layers) * (entry + attention + added)
            return Phase("activations", hbm_bytes=2 * tokens * passed, needed_bytes=0.0)
        passed = model.num_layers * entry + (model.num_layers - 1) * rest
        passed += len(model.deltanet_layers) * deltanet + len(model.attention_layers) * attention
        of_asked = rest
        if self._attention_is_last:  # of 6 passes, the input projection's output is the one of all tokens
            passed -= 5 * queries
            of_asked += 5 * queries
        return Phase("activations", hbm_bytes=2 * (tokens * passed + asked * of_asked), needed_bytes=0.0)

    def _small_operations(self, fused: bool) -> Phase:
        """What plain operations of a few tokens take beside what they read: of blocks that are not all kernels."""
        plain = len(self.model.attention_layers) if fused else 2 * self.model.num_layers
        return Phase("small operations", fixed=plain * self.rates.half_layer)

    def _collectives(self, tokens: int, asked: int, fused: bool = False) -> Phase:
        """Two sums over the ranks a layer, through device memory: a rank reads and writes its parts.

        Those after the last layer's MLP and, if it is attention, after its output projection are of `asked` tokens.
        With `fused` blocks those of attention are left: the others are in the kernels.
        """
        tp = self.profile.options.tp_degree
        if tp == 1:
            return Phase("collectives")
        count = 2 * self.model.num_layers
        of_asked = 1 + self._attention_is_last
        summed = (count - of_asked) * tokens + of_asked * asked
        moved = 2 * 2 * (tp - 1) / tp * self.model.hidden_size * 2
        if fused:
            count = len(self.model.attention_layers)
            summed = count * tokens
        return Phase("collectives", hbm_bytes=summed * moved, fixed=count * self.rates.collective, needed_bytes=0.0)

    @property
    def _attention_is_last(self) -> bool:
        return self.model.layer_types[-1] is LayerType.ATTENTION

    @property
    def _kv_bytes(self) -> float:
        """Of one token and layer, on one rank."""
        spec = self.profile.options.cache_spec(self.model)
        return spec.block_bytes / BLOCK_SIZE / max(1, len(spec.kv_layers))

    @property
    def _state_bytes(self) -> int:
        """Of one lane, on one rank."""
        return self.profile.options.cache_spec(self.model).lane_bytes
