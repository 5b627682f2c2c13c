"""What the fused kernels of a decode step take: feed-forward block and DeltaNet projections, one kernel each."""

from __future__ import annotations

from ...config import ModelConfig
from ...errors import ConfigError

TOKENS = 64
"""Rows of a launch at most: more are a prompt's."""

RANKS = (1, 2, 4, 8, 16, 32, 64)
"""How many can sum: each brings its part of the residual, which is exact for these."""


def check_fused(model: ModelConfig, tp: int, cores: int, tokens: int) -> None:
    """Raises ConfigError naming every size of a rank's model that the fused kernels do not take.

    Args:
        tp, cores: ranks, and physical cores of each.
        tokens: of the largest step, at most `TOKENS`.
    """
    from nki_kernels.decode_mlp import DOWN_BANKS  # imported on use, as the kernels are
    from nki_kernels.decode_projection import BANKS
    from nki_kernels.delta_rule_tiles import BANK_COLUMNS, TILE
    from nki_kernels.weight_stream import group_width

    rank, hidden = model.rank(tp), model.hidden_size
    groups, heads = TILE // group_width(tokens), rank.num_value_heads
    wide = rank.conv_channels + heads * model.value_head_dim
    wrong = [
        f"{size} {name} a rank must be a multiple of {needed} on {cores} physical cores a rank"
        for name, size, needed in (
            ("hidden channels", hidden, TILE * cores),
            ("intermediate channels", model.intermediate_size // tp, TILE * cores),
            ("DeltaNet input channels", wide, cores),
            ("DeltaNet value heads", heads, cores),
        )
        if size % needed
    ] + [
        f"{size} {name} are more than {most} of {tokens} tokens a step"
        for name, size, most in (
            ("hidden channels a core", hidden // cores, DOWN_BANKS * BANK_COLUMNS * groups),
            ("DeltaNet input channels a core", wide // cores, BANKS * BANK_COLUMNS * groups),
            ("DeltaNet value heads a rank", heads, BANK_COLUMNS // tokens),
        )
        if size > most
    ]
    if tp not in RANKS:
        wrong.append(f"{tp} ranks must be one of {', '.join(map(str, RANKS))}")
    if wrong:
        raise ConfigError("kernels", "fused", f"cannot run this model: {'; '.join(wrong)}", "Use kernels: nki")
