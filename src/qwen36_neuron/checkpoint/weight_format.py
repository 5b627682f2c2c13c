"""The number formats that a checkpoint's matrices are compiled in."""

from __future__ import annotations

from enum import StrEnum


class WeightFormat(StrEnum):
    """How the matrices are stored; everything else is bf16, or fp32 where the network keeps fp32."""

    BF16 = "bf16"
    FP8_MLP = "fp8-mlp"
    FP8 = "fp8"


FEED_FORWARD = ("gate_up_proj.weight", "down_proj.weight", "experts.gate_up_proj", "experts.down_proj")
"""Of a block, or of a mixture's experts and the one that all tokens have."""

QUANTISED: dict[WeightFormat, tuple[str, ...]] = {
    WeightFormat.BF16: (),
    WeightFormat.FP8_MLP: FEED_FORWARD,
    WeightFormat.FP8: (
        *FEED_FORWARD,
        "in_proj_qkvz.weight",
        "in_proj_qgkv.weight",
        "out_proj.weight",
        "o_proj.weight",
        "lm_head.weight",
    ),
}
"""Endings of the names of the matrices held in FP8. The draft layer stays in bf16 throughout."""
