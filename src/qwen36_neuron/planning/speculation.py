"""What drafts of the model's own layer are worth: how many are right, by what others measured, and what they take.

Everything is modelled. A round is a step that verifies `drafts` drafts a row in graphs of that width, then a call of a
draft graph that makes as many. All rows of a batch have the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

from .estimate import Estimate
from .rates import Phase

LAUNCH = 133e-6
"""Seconds that one more call of a graph takes on the host, its answer read; published for a trn2.3xlarge."""

NEAR, FAR = 1024, 32768
"""Tokens of context at which acceptance was published; between them it goes by the logarithm, beyond it stays."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """How likely a draft is right, if all before it were, whatever its place.

    Attributes:
        near, far: at NEAR and at FAR tokens of context.
    """

    near: float
    far: float

    def rate(self, context: int) -> float:
        """At so many tokens."""
        part = log2(min(max(context, NEAR), FAR) / NEAR) / log2(FAR / NEAR)
        return self.near + part * (self.far - self.near)

    def tokens(self, drafts: int, context: int) -> float:
        """Tokens that a round gives."""
        rate = self.rate(context)
        return sum(rate**place for place in range(drafts + 1))


LOW, HIGH = Acceptance(0.765, 0.39), Acceptance(0.91, 0.72)
"""Published, Qwen3.5 and 3.6 on GPUs: 2.8 to 3.5 tokens a round with 3 to 4 drafts, which 3 give at the rates near;
1.57 from 32K tokens on with 3 (sgl-project/sglang#30763); a first draft right 93.5 % of the time in short contexts and
72 % in long ones (vllm-project/vllm#47602)."""


@dataclass(frozen=True)
class Speculation:
    """An estimate of rounds with a number of drafts."""

    estimate: Estimate
    drafts: int

    def phases(self, batch: int, context: int) -> list[Phase]:
        """Those of a round of up to `num_lanes` rows that hold up to `context` tokens."""
        verify = self.estimate.decode_phases(batch, context, self.drafts)
        return self._round(verify, self.estimate.draft_phases(batch, context))

    def phases_of(self, rows: int, held: int) -> list[Phase]:
        """The same in graphs for just so many rows and tokens."""
        verify = self.estimate.step_phases(rows, held, self.drafts)
        return self._round(verify, self.estimate.draft_step_phases(rows, held))

    def _round(self, verify: list[Phase], draft: list[Phase]) -> list[Phase]:
        made = [draft] * self.drafts
        host = Phase("second launch", fixed=LAUNCH, fixed_bound="host")
        return [*verify, *(phase for one in made for phase in one), host]

    def round(self, batch: int, context: int) -> float:
        """Seconds of a round."""
        return sum(phase.seconds(self.estimate.rates) for phase in self.phases(batch, context))

    def rate(self, batch: int, context: int, acceptance: Acceptance) -> float:
        """Tokens a second, all rows together."""
        return batch * acceptance.tokens(self.drafts, context) / self.round(batch, context)

    def needed(self, batch: int, context: int) -> float:
        """Tokens that a round has to give for it to be as fast as steps without drafts."""
        return self.round(batch, context) / self.estimate.token(batch, context)
