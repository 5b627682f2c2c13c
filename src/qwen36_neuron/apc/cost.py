"""What a prefix costs to compute: the measure of what a checkpoint saves."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import ModelConfig


@dataclass(frozen=True, slots=True)
class PrefillCost:
    """FLOPs of prefilling a prefix of n tokens: `per_token * n + per_pair * n * n / 2`.

    Attributes:
        per_token: FLOPs that every token costs wherever it stands: the matrix products and the DeltaNet recurrence.
        per_pair: FLOPs of one query position attending to one key position, over all heads and attention layers.
    """

    per_token: float
    per_pair: float

    @classmethod
    def of(cls, config: ModelConfig) -> PrefillCost:
        """The cost for a model, in multiply-adds counted as two.

        A token passes once through every weight but the embeddings (the output head runs for one position a prompt)
        and the experts that are not its own.
        The recurrence reads the state twice (k^T S and q^T S) and updates it once, dk x dv each. Attention is q k^T
        and p v, head_dim each, over a causal triangle: n * n / 2 pairs.
        """
        embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
        weights = config.num_active_parameters() - embeddings
        state = config.num_value_heads * config.key_head_dim * config.value_head_dim
        recurrence = len(config.deltanet_layers) * 3 * state
        pairs = len(config.attention_layers) * config.num_query_heads * 2 * config.head_dim
        return cls(per_token=2.0 * (weights + recurrence), per_pair=2.0 * pairs)

    def prefix(self, tokens: int) -> float:
        """FLOPs of the first `tokens` tokens."""
        return self.per_token * tokens + self.per_pair * tokens * tokens / 2

    def between(self, start: int, end: int) -> float:
        """FLOPs of tokens `start` .. `end` - 1: what a checkpoint at `end` saves over one at `start`."""
        return (end - start) * (self.per_token + self.per_pair * (start + end) / 2)
