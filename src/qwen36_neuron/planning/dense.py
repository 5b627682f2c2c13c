"""A dense transformer by the estimate's plain operations: what others measured of one says whether its rates are right.

Attention is taken for a kernel that keeps its scores on the chip, as AWS's engine has it: products, keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .rates import Phase, Rates


@dataclass(frozen=True, slots=True)
class Dense:
    """A dense decoder in bfloat16 on four ranks.

    Attributes:
        heads, kv_heads: of `head_dim` channels.
        token_s, prompt_s: published seconds a token, and until the first token of a prompt of PROMPT.
    """

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    token_s: float
    prompt_s: float
    vocab: int = 151936
    head_dim: int = 128
    tp: int = 4
    rates: Rates = field(default_factory=Rates)

    @property
    def parameters(self) -> int:
        """That every token meets."""
        wide = (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        return self.layers * self.hidden * (wide + 3 * self.inner) + self.vocab * self.hidden

    def token(self, context: int) -> float:
        """Seconds of a decode step of one sequence."""
        read = self.layers * 2 * context * self.kv_heads * self.head_dim * 2 / self.tp
        return self._sum(
            Phase("weights", hbm_bytes=2 * self.parameters / self.tp, streams=True),
            Phase("attention", hbm_bytes=read, streams=True),
            Phase("small operations", fixed=2 * self.layers * self.rates.half_layer),
            Phase("collectives", fixed=2 * self.layers * self.rates.collective),
        )

    def prompt(self, tokens: int) -> float:
        """Seconds until the first token of a prompt that is one chunk."""
        scores = self.layers * self.heads / self.tp * tokens * tokens / 2
        passed = self.layers * tokens * (10 * self.hidden + 7 * self.inner / self.tp)
        moved = 2 * self.layers * tokens * 2 * 2 * (self.tp - 1) / self.tp * self.hidden * 2
        return self._sum(
            Phase("weights", 2 * self.parameters * tokens / self.tp, 2 * self.parameters / self.tp, streams=True),
            Phase("attention", flops=4 * scores * self.head_dim),
            Phase("activations", hbm_bytes=2 * passed),
            Phase("collectives", hbm_bytes=moved, fixed=2 * self.layers * self.rates.collective),
        )

    def _sum(self, *phases: Phase) -> float:
        return sum(phase.seconds(self.rates) for phase in phases)


PROMPT = 2048

QWEN3_32B = Dense("Qwen3-32B", 64, 5120, 25600, 64, 8, 49.5e-3, 0.476)
"""Published for a trn2.3xlarge, TP=4, bf16, SDK 2.32, AWS's engine for vLLM."""

QWEN3_8B = Dense("Qwen3-8B", 36, 4096, 12288, 32, 8, 19.7e-3, 0.160)
"""The same; its time a token is what `Rates.half_layer` was made of, its prompt was not used."""
