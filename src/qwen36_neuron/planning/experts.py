"""What the routed experts of a mixture read and multiply in a step. Everything is modelled.

How many experts a step has to read depends on the routing: as many as its tokens choose between them. Expected is taken
for tokens that choose independently, any set of experts as likely as any other; real routers are less even, so that
fewer are read, and at worst no two tokens share one. Plain operations read as much for any routing.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import ModelConfig
from ..graph.profile import Profile
from ..ops.moe.static import BlockPlan
from .plain import GATHERED
from .rates import Phase

PUBLISHED = {
    "decode, batch 1": 48.9,
    "decode, batch 128": 681.0,
    "prefill": 4384.0,
}
"""Tokens a second of the best public implementation of the 35B-A3B on this chip, measured by others: FP8, eight ranks
of one physical core each."""

HIDDEN_PASSES, INNER_PASSES = 7, 7
"""Passes of a row of the layout beside its products: its hidden channels gathered (3), the second product's written,
gathered (2) and summed; its gates and ups written and read (4), their product written, read and summed (3)."""


def expected_experts(tokens: int, experts: int, top_k: int) -> float:
    """Different experts that so many tokens choose, expected of even and independent choices."""
    return experts * (1 - (1 - top_k / experts) ** tokens)


def most_experts(tokens: int, experts: int, top_k: int) -> int:
    """The same at worst."""
    return min(experts, tokens * top_k)


@dataclass(frozen=True, slots=True)
class PlainExperts:
    """The routed experts of a mixture on one rank, as `ops.moe.static` computes them.

    Attributes:
        worst: take as many different experts for what is needed as there can be, not as many as expected.
    """

    profile: Profile
    model: ModelConfig
    worst: bool = False

    def phase(self, name: str, tokens: dict[int, int], fp8: bool) -> Phase:
        """Of some layers; router and shared expert, which are matrices like others, are no part of it.

        Gathering is taken for operations like others between products, as that of keys and values is.

        Args:
            tokens: how many layers have so many tokens, by their number.
            fp8: weights are of a byte.
        """
        moe, rank = self.model.moe, self.model.rank(self.profile.options.tp_degree)
        assert moe is not None
        sizes = moe.num_experts, moe.num_experts_per_tok
        matrix = 3 * self.model.hidden_size * rank.intermediate_size
        each = matrix * (1 if fp8 else 2)
        passed = 2 * (HIDDEN_PASSES * self.model.hidden_size + INNER_PASSES * rank.intermediate_size)
        flops = needed_flops = moved = needed = fed = 0.0
        for count, layers in tokens.items():
            plan = BlockPlan.of(count, *sizes)
            flops += layers * 2 * matrix * plan.rows
            needed_flops += layers * 2 * matrix * count * sizes[1]
            moved += layers * (GATHERED * plan.blocks * each + plan.rows * passed)
            needed += layers * (most_experts if self.worst else expected_experts)(count, *sizes) * each
            fed += layers * plan.blocks * matrix if fp8 else 0.0
        return Phase(name, flops, moved, fed=fed, needed_bytes=needed, needed_flops=needed_flops)
