"""Checkpoint files in, one rank's runtime weights out."""

from __future__ import annotations

from pathlib import Path

import torch

from ..config import ModelConfig
from .files import CheckpointFiles
from .names import mtp_shapes, text_shapes
from .sharding import assemble, rank_weights


def load_weights(
    path: str | Path,
    config: ModelConfig,
    *,
    tp: int = 1,
    rank: int = 0,
    dtype: torch.dtype = torch.float32,
    include_mtp: bool = False,
) -> dict[str, torch.Tensor]:
    """Read the weights of rank `rank` of `tp`, and of no other rank, from a folder in Hugging Face layout.

    The files may be one or sharded, text-only or with a vision tower, in fp32, bf16 or fp16.

    Args:
        dtype: of the weights; norms and DeltaNet's decay are fp32 always.
        include_mtp: also load the multi-token-prediction layer.

    Returns:
        Contiguous CPU tensors by runtime name. With tied embeddings the head is the embedding's own tensor.

    Raises:
        CheckpointError: with every missing, unknown and wrongly shaped tensor.
        ConfigError: the model does not split into `tp` ranks, or has no multi-token-prediction layer to include.
    """
    layout = rank_weights(config, tp, rank, include_mtp)
    with CheckpointFiles(path) as files:
        files.check(text_shapes(config) | (mtp_shapes(config) if include_mtp else {}))
        weights = {
            name: assemble(weight, files.read, dtype)
            for name, weight in layout.items()
            if not (config.tie_word_embeddings and name == "lm_head.weight")
        }
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    return weights
