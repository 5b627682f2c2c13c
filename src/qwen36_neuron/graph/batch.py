"""Batches as NxDI's own tools give them. They know nothing of blocks and lanes: each sequence gets its own for good."""

from __future__ import annotations

import torch

from ..config import BLOCK_SIZE
from ..errors import ConfigError
from ..step import Output, Row
from .options import GraphOptions


def batch_rows(
    options: GraphOptions,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor,
    seq_ids: torch.Tensor | None,
) -> list[Row]:
    """The rows of a batch of prompts, or of a batch of next tokens.

    Args:
        input_ids: [batch, tokens]: prompts padded on the right, or one token each.
        attention_mask: [batch, tokens], ones for the prompts' own tokens; None if there is no padding.
        position_ids: [batch, tokens]; one token at a position above 0 continues its sequence.
        seq_ids: [batch], which sequence each row is, below num_lanes; None for 0, 1, ...
    Raises:
        ConfigError: there are fewer KV blocks than all lanes take at full length.
    """
    each = options.positions // BLOCK_SIZE
    if options.num_blocks <= each * options.num_lanes:
        raise ConfigError(
            "num_blocks",
            options.num_blocks,
            f"{options.num_lanes} sequences of {options.max_model_len} tokens need {each * options.num_lanes + 1}",
            "Compile with that many, or drive the model through the runtime, which shares blocks",
        )
    lanes = range(1, len(input_ids) + 1) if seq_ids is None else [int(seq) + 1 for seq in seq_ids]
    rows = []
    for index, lane in enumerate(lanes):
        start = int(position_ids[index, 0])
        count = input_ids.shape[1]
        if count > 1 and attention_mask is not None:
            count = int(attention_mask[index].sum())
        tokens = input_ids[index, :count].tolist()
        blocks = range(1 + (lane - 1) * each, 1 + lane * each)
        rows.append(Row(f"sequence {lane - 1}", lane, tokens, start, blocks, output=Output.LOGITS))
    return rows
