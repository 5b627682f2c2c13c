"""The number formats that a checkpoint's matrices are compiled in."""

from __future__ import annotations

from enum import StrEnum


class WeightFormat(StrEnum):
    """How the matrices are stored; everything else is bf16, or fp32 where the network keeps fp32."""

    BF16 = "bf16"
    FP8_MLP = "fp8-mlp"
    FP8 = "fp8"


QUANTISED: dict[WeightFormat, tuple[str, ...]] = {
    WeightFormat.BF16: (),
    WeightFormat.FP8_MLP: ("gate_up_proj.weight", "down_proj.weight"),
    WeightFormat.FP8: (
        "gate_up_proj.weight",
        "down_proj.weight",
        "in_proj_qkvz.weight",
        "in_proj_qgkv.weight",
        "out_proj.weight",
        "o_proj.weight",
        "lm_head.weight",
    ),
}
"""Endings of the names of the matrices held in FP8. The draft layer stays in bf16 throughout."""
