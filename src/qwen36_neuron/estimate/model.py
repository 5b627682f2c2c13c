"""The phases of a prefill chunk and of a decode step of one rank, and the times that follow. Everything is modelled.

Phases follow one another; nothing overlaps between them. The host, the sampler and the server are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..artifact.profile import Profile
from ..cache.plan import QUANTISED
from ..checkpoint.names import text_shapes
from ..checkpoint.sharding import Part, rank_weights
from ..config import BLOCK_SIZE, ModelConfig
from ..nxdi.buckets import PrefillBucket
from .delta_rule import DeltaRuleCost
from .rates import Phase, Rates

SCORE_BYTES = 40
"""Traffic of one attention score in plain operations: written and read as fp32 by product, mask, softmax and cast."""

SCORE_OPERATIONS = 6
"""VectorE passes over it: scale and mask, maximum, difference, sum, division, cast."""

STATE_OPERATIONS = 5
"""VectorE passes over the recurrent state for one token: decay (1), prediction (2, a product and a sum), update (2)."""


def single_sequence(profile: Profile) -> Profile:
    """The profile as published baselines are measured: one sequence, no checkpoints."""
    return replace(profile, options=replace(profile.options, num_lanes=1, num_slots=0, decode_rows=()))


@dataclass(frozen=True)
class Estimate:
    """A profile of a model on one machine, with a price for the delta rule over a prompt."""

    profile: Profile
    model: ModelConfig
    delta_rule: DeltaRuleCost
    rates: Rates = field(default_factory=Rates)

    # ---- what is asked ---------------------------------------------------------------------------------------------

    def first_token(self, prompt: int) -> float:
        """Seconds of prefill until the first token of a prompt without a reusable prefix."""
        return sum(phase.seconds(self.rates) for phase in self.prompt_phases(prompt))

    def token(self, batch: int, context: int) -> float:
        """Seconds of a decode step of `batch` rows that hold up to `context` tokens."""
        steps, left = divmod(batch, self.profile.options.num_lanes)
        counts = [self.profile.options.num_lanes] * steps + [left] * bool(left)
        return sum(phase.seconds(self.rates) for count in counts for phase in self.decode_phases(count, context))

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
        rank, held = model.rank(options.tp_degree), bucket.prefix + new
        layers, attention = len(model.deltanet_layers), len(model.attention_layers)
        scores = attention * rank.num_query_heads * new * held
        states = 1 + 1 + options.prefill_commits if options.num_slots else 2
        return [
            self._matrices(new),
            Phase(
                "attention",
                flops=4 * scores * model.head_dim,
                hbm_bytes=scores * SCORE_BYTES + 2 * held * self._kv_bytes,
                vector_elements=scores * SCORE_OPERATIONS,
            ),
            Phase(
                "delta rule",
                fixed=layers * self.delta_rule.seconds(model, rank, new),
                fixed_bound=self.delta_rule.bound(model, rank),
            ),
            Phase("states", hbm_bytes=2 * states * self._state_bytes),
            self._activations(new),
            self._collectives(new),
        ]

    def decode_phases(self, batch: int, context: int) -> list[Phase]:
        """One token-generation call of up to `num_lanes` rows: every row of its graph is computed, in use or not."""
        model, options = self.model, self.profile.options
        rows, held = options.decode_rows_for(batch), options.buckets.decode_for(context)
        rank = model.rank(options.tp_degree)
        layers, attention = len(model.deltanet_layers), len(model.attention_layers)
        scores = attention * rank.num_query_heads * rows * held
        state = layers * rows * rank.num_value_heads * model.key_head_dim * model.value_head_dim
        commits = options.decode_commits if options.num_slots else 0
        return [
            self._matrices(rows),
            Phase(
                "attention",
                flops=4 * scores * model.head_dim,
                hbm_bytes=scores * SCORE_BYTES + 3 * rows * held * self._kv_bytes,  # gathered: read, written, read
                vector_elements=scores * SCORE_OPERATIONS,
            ),
            Phase(
                "states",
                hbm_bytes=2 * (rows + commits) * self._state_bytes,
                vector_elements=state * STATE_OPERATIONS,
            ),
            self._activations(rows),
            self._collectives(rows),
        ]

    def _matrices(self, tokens: int) -> Phase:
        """All projections of `tokens` tokens, weights read once; the head, of at most a token a sequence."""
        options, shapes = self.profile.options, text_shapes(self.model)
        endings = QUANTISED[self.profile.weights]
        read = flops = 0.0
        for name, weight in rank_weights(self.model, options.tp_degree).items():
            shape = weight.shape(shapes)
            if len(shape) != 2 or weight.part is Part.NORM or name == "embed_tokens.weight":
                continue
            size = shape[0] * shape[1]
            read += size * (1 if endings and name.endswith(endings) else 2)
            flops += 2 * size * (min(tokens, options.num_lanes) if name == "lm_head.weight" else tokens)
        return Phase("weights", flops=flops, hbm_bytes=read)

    def _activations(self, tokens: int) -> Phase:
        """What operations between the products read and write: norms, residuals, gates, convolution, SwiGLU."""
        model, rank = self.model, self.model.rank(self.profile.options.tp_degree)
        hidden = 2 * (2 + 3) * model.hidden_size  # two norms of one in, one out; two additions of two in, one out
        mlp = 3 * rank.intermediate_size + 2 * (2 * rank.intermediate_size)  # SwiGLU, and the products' outputs
        value = rank.num_value_heads * model.value_head_dim
        deltanet = 4 * rank.conv_channels + 6 * value
        attention = 6 * (2 * rank.num_query_heads + 2 * rank.num_kv_heads) * model.head_dim
        layers = len(model.deltanet_layers) * deltanet + len(model.attention_layers) * attention
        return Phase("activations", hbm_bytes=2 * tokens * (model.num_layers * (hidden + mlp) + layers))

    def _collectives(self, tokens: int) -> Phase:
        """Two sums over the ranks a layer, through device memory: a rank reads and writes its parts."""
        tp = self.profile.options.tp_degree
        if tp == 1:
            return Phase("collectives")
        moved = 2 * 2 * (tp - 1) / tp * tokens * self.model.hidden_size * 2
        count = 2 * self.model.num_layers
        return Phase("collectives", hbm_bytes=count * moved, fixed=count * self.rates.collective)

    @property
    def _kv_bytes(self) -> float:
        """Of one token, on one rank."""
        spec = self.profile.options.cache_spec(self.model)
        return spec.block_bytes / BLOCK_SIZE

    @property
    def _state_bytes(self) -> int:
        """Of one lane, on one rank."""
        return self.profile.options.cache_spec(self.model).lane_bytes
