"""How far one model's next-token distributions are from another's: the measure for number formats and kernels.

Streaming: logits of a few positions at a time are folded into sums and a histogram, so that memory does not grow with
the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import BLOCK_SIZE
from .errors import ConfigError
from .step import Output, Row, Runtime, Step

LOWEST, HIGHEST = 1e-12, 1e3
"""Divergences outside are counted at the end of the histogram that they are beyond, in nats."""
BINS_PER_DECADE = 200
LANE = 1


@dataclass(frozen=True, slots=True)
class Quality:
    """The candidate against the reference, over all predicted tokens.

    Attributes:
        tokens: positions compared.
        kl_mean, kl_max: KL(reference || candidate) in nats a token.
        kl_median, kl_p90: the same, from a histogram: within 1.2 %.
        top1_agreement: share of positions where both have the same most likely token.
        coverage: share of the reference's `k` most likely tokens that are among the candidate's.
        k: as given.
        reference_perplexity, candidate_perplexity: of the text.
    """

    tokens: int
    kl_mean: float
    kl_median: float
    kl_p90: float
    kl_max: float
    top1_agreement: float
    coverage: float
    k: int
    reference_perplexity: float
    candidate_perplexity: float


class QualityMeter:
    """Takes logits in, batch by batch."""

    def __init__(self, k: int = 10) -> None:
        if k < 1:
            raise ConfigError("k", k, "must be at least 1", "Use 10")
        self.k = k
        self._histogram = torch.zeros(round(math.log10(HIGHEST / LOWEST) * BINS_PER_DECADE) + 1, dtype=torch.int64)
        self._tokens = 0
        self._sums = torch.zeros(5, dtype=torch.float64)
        self._max = 0.0

    def add(self, reference: Tensor, candidate: Tensor, targets: Tensor) -> None:
        """Compare some positions.

        Args:
            reference, candidate: logits [positions, vocab] of any float type.
            targets: int64 [positions], the tokens that follow in the text.
        """
        if reference.shape != candidate.shape:
            raise ConfigError(
                "candidate",
                tuple(candidate.shape),
                f"the reference's logits are {tuple(reference.shape)}",
                "Use one tokenizer",
            )
        a, b = (logits.to(torch.float64).log_softmax(-1) for logits in (reference, candidate))
        kl = (a.exp() * (a - b)).masked_fill(a.isneginf(), 0.0).sum(-1).clamp_min(0.0)
        k = min(self.k, a.shape[-1])
        top_a, top_b = a.topk(k).indices, b.topk(k).indices
        shared = torch.zeros_like(b, dtype=torch.bool).scatter_(1, top_b, True).gather(1, top_a).double().mean(-1)
        at = targets[:, None]
        sums = (kl, a.argmax(-1) == b.argmax(-1), shared, a.gather(-1, at), b.gather(-1, at))
        self._sums += torch.stack([part.double().sum() for part in sums])
        self._tokens += len(kl)
        self._max = max(self._max, float(kl.max()))
        bins = ((kl.clamp(LOWEST, HIGHEST) / LOWEST).log10() * BINS_PER_DECADE).round().long()
        self._histogram += torch.bincount(bins, minlength=len(self._histogram))

    def result(self) -> Quality:
        """Raises ConfigError where nothing was added."""
        if not self._tokens:
            raise ConfigError("text", "", "holds fewer than two tokens", "Give a longer one")
        kl, top1, shared, a, b = (self._sums / self._tokens).tolist()
        return Quality(
            tokens=self._tokens,
            kl_mean=kl,
            kl_median=self._quantile(0.5),
            kl_p90=self._quantile(0.9),
            kl_max=self._max,
            top1_agreement=top1,
            coverage=shared,
            k=self.k,
            reference_perplexity=math.exp(-a),
            candidate_perplexity=math.exp(-b),
        )

    def _quantile(self, share: float) -> float:
        """The smallest bin that `share` of the positions do not exceed; 0 where that is the lowest one."""
        wanted = math.ceil(share * self._tokens)
        index = int(torch.searchsorted(self._histogram.cumsum(0), wanted))
        return LOWEST * 10 ** (index / BINS_PER_DECADE) if index else 0.0


def compare(
    reference: Runtime, candidate: Runtime, tokens: Sequence[int], meter: QualityMeter, window: int, chunk: int
) -> Iterator[int]:
    """Run `tokens` through both in windows, add every predicted position to `meter`, and give out the tokens done.

    Args:
        tokens: the text.
        window: tokens of context at most; the text is cut into windows of this length.
        chunk: tokens run at a time: logits of [chunk, vocab] are held twice.
    """
    for first in range(0, len(tokens) - 1, window):
        part = tokens[first : first + window]
        blocks = range(1, 1 - (-len(part) // BLOCK_SIZE))
        for start in range(0, len(part), chunk):
            piece = part[start : start + chunk]
            step = Step((Row("compare", LANE, piece, start, blocks, output=Output.ALL_LOGITS),))
            a, b = (runtime.run(step).rows[0].logits for runtime in (reference, candidate))
            assert a is not None
            assert b is not None
            targets = torch.tensor(part[start + 1 : start + 1 + len(piece)], dtype=torch.int64)
            if len(targets):
                meter.add(a[: len(targets)], b[: len(targets)], targets)
            yield first + start + len(piece)
        for runtime in (reference, candidate):
            runtime.run(Step((), released_lanes=(LANE,)))
