"""The small parameters of a block as the fused operations read them."""

from __future__ import annotations

from dataclasses import dataclass

from .scalar import Array


@dataclass(frozen=True, slots=True)
class DeltaNetWeights:
    """Of a DeltaNet block, fp32.

    Attributes:
        taps: [K, channels], the convolution's weight with channels next to each other.
        rate: [value_heads], A = -exp(A_log); dt_bias: [value_heads].
        norm_weight: [dv]; eps: of the gated norm.
    """

    key_heads: int
    taps: Array
    rate: Array
    dt_bias: Array
    norm_weight: Array
    eps: float
