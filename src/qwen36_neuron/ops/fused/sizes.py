"""What the fused kernels of a decode step take: feed-forward block, attention layer, DeltaNet projections, head."""

from __future__ import annotations

from ...config import ModelConfig
from ...errors import ConfigError

TOKENS = 64
"""Rows of a launch at most: more are a prompt's."""

LEAST_VOCABULARY = 64
"""Tokens that a core's part of the vocabulary has at least: each of four chunks as many as are kept of it."""

GROUPS = 48
"""Sequences times key heads of a rank that a fused attention layer takes: their sums lie in SBUF side by side."""

RANKS = (1, 2, 4, 8, 16, 32, 64)
"""How many can sum: each brings its part of the residual, which is exact for these."""


def joins_projection(model: ModelConfig, tp: int, cores: int, tokens: int) -> bool:
    """Whether a feed-forward block's kernel can have the next DeltaNet mixer's input projections in it too."""
    from nki_kernels.decode_mlp import DOWN_BANKS  # imported on use, as the kernels are
    from nki_kernels.delta_rule_tiles import BANK_COLUMNS, TILE
    from nki_kernels.weight_stream import group_width

    rank = model.rank(tp)
    wide = (rank.conv_channels + rank.num_value_heads * model.value_head_dim) // cores
    return wide <= DOWN_BANKS * BANK_COLUMNS * (TILE // group_width(max(1, tokens)))


def check_fused(model: ModelConfig, tp: int, cores: int, tokens: int, sequences: int, row: int) -> None:
    """Raises ConfigError naming every size of a rank's model that the fused kernels do not take.

    Args:
        tp, cores: ranks, and physical cores of each.
        tokens: of the largest step, at most `TOKENS`.
        sequences, row: of a step of fused attention layers, and tokens of each at most; 0 without such layers.
    """
    from nki_kernels.decode_head_plan import RUN  # imported on use, as the kernels are
    from nki_kernels.decode_mlp import DOWN_BANKS
    from nki_kernels.decode_projection import BANKS
    from nki_kernels.delta_rule_tiles import BANK_COLUMNS, TILE
    from nki_kernels.delta_rule_tiles import BANKS as BANKS_OF_PSUM
    from nki_kernels.weight_stream import group_width

    rank, hidden = model.rank(tp), model.hidden_size
    groups, heads = TILE // group_width(tokens), rank.num_value_heads
    wide = rank.conv_channels + heads * model.value_head_dim
    share = -(-rank.num_query_heads // rank.num_kv_heads)
    projected = 2 * (rank.num_query_heads + rank.num_kv_heads) * model.head_dim if row else 0
    wrong = [
        f"{size} {name} a rank must be a multiple of {needed} on {cores} physical cores a rank"
        for name, size, needed in (
            ("hidden channels", hidden, TILE * cores),
            ("intermediate channels", model.intermediate_size // tp, TILE * cores),
            ("DeltaNet input channels", wide, cores),
            ("DeltaNet value heads", heads, cores),
            ("tokens of the vocabulary", model.vocab_size // tp, RUN * cores),
        )
        if size % needed
    ] + [
        f"{size} {name} are more than {most} of {tokens} tokens a step"
        for name, size, most in (
            ("hidden channels a core", hidden // cores, DOWN_BANKS * BANK_COLUMNS * groups),
            ("DeltaNet input channels a core", wide // cores, BANKS * BANK_COLUMNS * groups),
            ("DeltaNet value heads a rank", heads, BANK_COLUMNS // tokens),
            ("attention input channels a core", projected // cores, (BANKS_OF_PSUM - 1) * BANK_COLUMNS * groups),
        )
        if size > most
    ]
    if model.vocab_size // tp < LEAST_VOCABULARY * cores:
        least = LEAST_VOCABULARY * cores
        wrong.append(f"{model.vocab_size // tp} tokens of the vocabulary a rank are fewer than {least}")
    if sequences * rank.num_kv_heads > GROUPS:
        most = GROUPS // rank.num_kv_heads
        wrong.append(f"{sequences} sequences of {rank.num_kv_heads} key heads a rank are more than {most}")
    if share * row > TILE:
        wrong.append(f"{share} query heads a key head are more than {TILE // row} of {row} tokens a row")
    if tp not in RANKS:
        wrong.append(f"{tp} ranks must be one of {', '.join(map(str, RANKS))}")
    if wrong:
        raise ConfigError("kernels", "fused", f"cannot run this model: {'; '.join(wrong)}", "Use kernels: nki")
