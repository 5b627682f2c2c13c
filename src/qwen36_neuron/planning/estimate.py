"""The phases of a prefill chunk and of a decode step of one rank, and the times that follow. Everything is modelled.

Phases follow one another; nothing overlaps between them. The host, the sampler and the server are not counted. A
prefill chunk is asked for the result of its last token: of the last layer, all its tokens pass the first norm, the
input projection and what leaves keys, values or a state, and one token the rest, as in `model.decoder`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nki_kernels.interpreter.price_list import Level

from ..checkpoint.weight_format import QUANTISED, WeightFormat
from ..config import ModelConfig
from ..graph.buckets import PrefillBucket
from ..graph.profile import Profile
from .delta_rule import DeltaRuleCost
from .experts import PlainExperts
from .kernel_prices import KernelPrices
from .plain import ATTENTION, DELTANET, GATHERED, MLP, PlainOperations
from .rates import Phase, Rates

STATE_OPERATIONS = 5
"""VectorE passes over the recurrent state for one token: decay (1), prediction (2, a product and a sum), update (2)."""

ABSORB_OPERATIONS = 2 * 2
"""The same for taking accepted drafts in, however many: decay and sum, of the lane's state and of a checkpoint's."""


def single_sequence(profile: Profile) -> Profile:
    """The profile as published baselines are measured: one sequence, no checkpoints, plain operations."""
    alone = replace(profile.options, num_lanes=1, num_slots=0, decode_rows=(), kernels="torch")
    return replace(profile, options=alone)


@dataclass(frozen=True)
class Estimate:
    """A profile of a model on one machine, with a price for the delta rule over a prompt.

    Attributes:
        level: at which kernels are priced.
        worst_routing: the roofline has a mixture's tokens choose as many different experts as they can, and not as many
            as expected; see `experts`.
    """

    profile: Profile
    model: ModelConfig
    delta_rule: DeltaRuleCost
    rates: Rates = field(default_factory=Rates)
    level: Level = "centre"
    worst_routing: bool = False

    def __post_init__(self) -> None:
        self.profile.options.check_model(self.model)

    def at(self, level: Level) -> Estimate:
        """The same with the kernels' prices at their cheapest, centre or dearest."""
        return replace(self, delta_rule=self.delta_rule.at(level), rates=self.rates.at(level), level=level)

    @property
    def _plain(self) -> PlainOperations:
        return PlainOperations(self.profile, self.model, self.rates)

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
        alone = int(self._plain.attention_is_last and not whole)
        states = 1 + 1 + options.prefill_commits if options.num_slots else 2
        mlp = self._mlps(new, asked)
        return [
            *mlp,
            *self._experts(new, asked),
            *self._head(1),
            self._plain.matrices(new, 1, whole, MLP if mlp else (), not options.stages.fused),
            *self._around_the_rule(new),
            self._prompt_attention(attention - alone, alone, new, bucket.prefix),
            Phase(
                "delta rule",
                fixed=layers * self.delta_rule.seconds(model, rank, new),
                fixed_bound=self.delta_rule.bound(model, rank),
            ),
            Phase("states", hbm_bytes=2 * states * self._plain.state_bytes),
            self._plain.activations(new, asked),
            self._plain.collectives(new, asked),
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
        choice = options.stages.verify if drafts else options.stages.decode
        fused = choice == "fused"
        blocks = self._fused_blocks(rows, tokens) if fused else self._mlps(tokens, tokens)
        without: tuple[str, ...] = (MLP if blocks else ()) + (DELTANET if fused else ())
        if fused and options.fused_attention:
            without, attention = without + ATTENTION, self._attention_layers(rows, 1 + drafts, held)
        else:
            attention = self._row_attention("attention", len(model.attention_layers), rows, 1 + drafts, held)
        drafting = bool(drafts) or options.draft_layer
        whole = fused and self._whole_mixer(rows, tokens) is not None
        return [
            *blocks,
            *self._experts(tokens, tokens),
            attention,
            *self._head(tokens),
            self._plain.matrices(tokens, tokens, drafting, without, not options.stages.fused),
            *([] if whole else [self._row_states(rows, 1 + drafts)]),
            self._plain.activations(tokens, tokens, choice),
            self._plain.collectives(tokens, tokens, choice),
            self._plain.small_operations(choice),
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
        blocks = 2 if self.model.moe is None else 3  # as in `PlainOperations.small_operations`
        rest = Phase("draft: small operations", fixed=blocks * self.rates.half_layer)
        experts = self._routed("draft: experts", {rows: 1}, fp8=False)
        used = ("mtp.",) if options.stages.fused else ("mtp.", "lm_head.")
        products = self._plain.products("draft: weights", used, rows, rows)
        return [products, *experts, *self._head(rows, "draft: head"), layer, sums, rest]

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
                "attention", 4.0 * pairs * heads * self.model.head_dim, (whole + alone) * held * self._plain.kv_bytes,
                fixed=whole * seconds + last, fixed_bound=bound, priced=True,
            )  # fmt: skip
        scores = (whole * new + alone) * self.model.rank(self.profile.options.tp_degree).num_query_heads * held
        return self._plain.attention("attention", scores, (2 * whole + GATHERED * alone) * held)

    def _row_attention(self, name: str, layers: int, rows: int, tokens: int, held: int) -> Phase:
        """Attention of a few tokens of each row."""
        scores = layers * self.model.rank(self.profile.options.tp_degree).num_query_heads * rows * tokens * held
        if self._kernels:
            seconds, bound = self._kernels.attention(rows, tokens, held)
            work = self._attention_work(layers, rows, tokens, held)
            return Phase(name, *work, fixed=layers * seconds, fixed_bound=bound, priced=True)
        return self._plain.attention(name, scores, GATHERED * layers * rows * held)

    def _attention_work(self, layers: int, rows: int, tokens: int, held: int) -> tuple[float, float]:
        """FLOPs and bytes of a kernel's attention of a few tokens of each row."""
        scores = layers * self.model.rank(self.profile.options.tp_degree).num_query_heads * rows * tokens * held
        return 4.0 * scores * self.model.head_dim, layers * rows * held * self._plain.kv_bytes

    def _row_states(self, rows: int, tokens: int) -> Phase:
        """The delta rule of a few tokens of each row; as a kernel with the convolution's, whose traffic is small."""
        model, options = self.model, self.profile.options
        layers = len(model.deltanet_layers)
        if self._kernels:
            seconds, bound = self._kernels.states(rows, tokens)
            if (options.stages.decode if tokens == 1 else options.stages.verify) != "fused":
                seconds += self._kernels.gated_norm(rows * tokens)[0]
            return Phase("states", hbm_bytes=self._passed(rows), fixed=layers * seconds, fixed_bound=bound, priced=True)
        heads = model.rank(options.tp_degree).num_value_heads
        passes = STATE_OPERATIONS * tokens + (ABSORB_OPERATIONS if tokens > 1 else 0)
        commits = options.decode_commits if options.num_slots else 0
        return Phase(
            "states",
            hbm_bytes=2 * (rows + commits) * self._plain.state_bytes,
            vector_elements=layers * rows * heads * model.key_head_dim * model.value_head_dim * passes,
        )

    def _around_the_rule(self, new: int) -> list[Phase]:
        """Convolution and gated norm of a chunk, where they are kernels."""
        if not self._kernels:
            return []
        layers, (seconds, bound) = len(self.model.deltanet_layers), self._kernels.around_the_rule(new)
        return [Phase("convolution and gated norm", fixed=layers * seconds, fixed_bound=bound, priced=True)]

    def _mlps(self, tokens: int, asked: int) -> list[Phase]:
        """MLPs of `tokens` tokens, in the last layer of `asked` ones, where they are the kernel for FP8 weights."""
        if not self.profile.options.mlp_kernel or self.model.moe is not None:
            return []
        assert self._kernels is not None
        last = f"layers.{self.model.num_layers - 1}."
        (seconds, bound), (alone, _) = self._kernels.fp8_mlp(tokens), self._kernels.fp8_mlp(asked)
        work = self._plain.products("MLPs", ("layers.",), tokens, asked, (last,), only=MLP)
        total = (self.model.num_layers - 1) * seconds + alone
        return [replace(work, fixed=total, fixed_bound=bound, priced=True)]

    def _experts(self, tokens: int, asked: int) -> list[Phase]:
        """Routed experts of `tokens` tokens, in the last layer of `asked` ones; none of a dense model."""
        layers = {tokens: self.model.num_layers - 1}
        layers[asked] = layers.get(asked, 0) + 1
        return self._routed("experts", layers, self.profile.weights is not WeightFormat.BF16)

    def _routed(self, name: str, tokens: dict[int, int], fp8: bool) -> list[Phase]:
        """Routed experts of some layers, by the tokens that they have. The price of a kernel of experts goes here."""
        if self.model.moe is None:
            return []
        return [PlainExperts(self.profile, self.model, self.worst_routing).phase(name, tokens, fp8)]

    def _whole_mixer(self, rows: int, tokens: int) -> tuple[float, str] | None:
        """The price of a DeltaNet mixer behind its input as one kernel; None where it is several."""
        assert self._kernels is not None
        codes = "out_proj.weight" in QUANTISED[self.profile.weights]
        return self._kernels.delta_net(rows, codes) if tokens == rows else None

    def _fused_blocks(self, rows: int, tokens: int) -> list[Phase]:
        """Feed-forward blocks and DeltaNet mixers' projections, a kernel each with its norm and its sum over the ranks.

        Input projections that are in a block's kernel are counted with the blocks; of one token a row what lies between
        the projections is in the kernel of the second, with the states that it passes.
        """
        model, kernels = self.model, self._kernels
        assert kernels is not None  # fused stages have them
        endings, mixers = QUANTISED[self.profile.weights], len(model.deltanet_layers)
        of_mlp, of_mixer = "down_proj.weight" in endings, "out_proj.weight" in endings
        joined = len(self.profile.options.joined_layers(model))
        block, bound = kernels.feed_forward(tokens, of_mlp)
        both = joined and kernels.feed_forward_and_input(tokens, of_mlp)[0]
        into, bound_around = kernels.delta_input(tokens, of_mixer)
        whole = self._whole_mixer(rows, tokens)
        name, passed = ("DeltaNet projections", 0.0) if whole is None else ("DeltaNet mixers", self._passed(rows))
        out, bound_around = whole or (kernels.delta_output(tokens, of_mixer)[0], bound_around)
        plain = self._plain
        around = plain.products(name, ("layers.",), tokens, tokens, only=DELTANET)
        return [
            replace(
                plain.products("feed-forward", ("layers.",), tokens, tokens, only=MLP),
                fixed=(model.num_layers - joined) * block + joined * both,
                fixed_bound=bound,
                priced=True,
            ),
            replace(
                around,
                hbm_bytes=around.hbm_bytes + passed,
                fixed=(mixers - joined) * into + mixers * out,
                fixed_bound=bound_around,
                priced=True,
            ),
        ]

    def _passed(self, rows: int) -> float:
        """Bytes of states that kernels of few tokens a row read and write, in all layers."""
        return 2 * rows * self._plain.state_bytes

    def _attention_layers(self, rows: int, tokens: int, held: int) -> Phase:
        """Attention with all that its fused layers have: norms, projections, gate, the sum over the ranks."""
        kernels, codes = self._kernels, "o_proj.weight" in QUANTISED[self.profile.weights]
        assert kernels is not None  # fused stages have them
        seconds, bound = kernels.attention_layer(rows, tokens, held, codes)
        layers = len(self.model.attention_layers)
        work = self._plain.products("attention", ("layers.",), rows * tokens, rows * tokens, only=ATTENTION)
        flops, read = self._attention_work(layers, rows, tokens, held)
        return replace(
            work,
            flops=work.flops + flops,
            hbm_bytes=work.hbm_bytes + read,
            fixed=layers * seconds,
            fixed_bound=bound,
            priced=True,
        )

    def _head(self, tokens: int, name: str = "head") -> list[Phase]:
        """The head of so many tokens, where it is a kernel; then it is one in every graph."""
        if not self.profile.options.stages.fused:
            return []
        assert self._kernels is not None
        seconds, bound = self._kernels.head(tokens, "lm_head.weight" in QUANTISED[self.profile.weights])
        work = self._plain.products(name, ("lm_head.",), tokens, tokens)
        return [replace(work, fixed=seconds, fixed_bound=bound, priced=True)]

    @property
    def _kernels(self) -> KernelPrices | None:
        options = self.profile.options
        if options.stages.prefill == "torch":
            return None
        return KernelPrices(self.model, options.tp_degree, options.logical_cores, self.level)
