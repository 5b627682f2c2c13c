"""Checkpoint files in, one rank's runtime weights out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from ..config import ModelConfig
from ..errors import ConfigError
from .files import CheckpointError, CheckpointFiles, checkpoint_files
from .formats import Inputs, QuantisedWeight, join
from .formats.own_fp8 import SCALE
from .names import HEAD, mtp_shapes, text_shapes
from .sharding import Cast, RankWeight, Slice, assemble, rank_weights

logger = logging.getLogger(__name__)


def load_weights(
    path: str | Path,
    config: ModelConfig,
    *,
    tp: int = 1,
    rank: int = 0,
    dtype: torch.dtype = torch.float32,
    include_mtp: bool = False,
    keep_fp8: bool = False,
    rounds_inputs: bool = False,
) -> dict[str, torch.Tensor]:
    """Read the weights of rank `rank` of `tp`, and of no other rank, from a folder in Hugging Face layout.

    The files may be one or sharded, text-only or with a vision tower, in fp32, bf16, fp16, or quantised (`formats`).

    Args:
        dtype: of the weights; norms and DeltaNet's decay are fp32 always.
        include_mtp: also load the multi-token-prediction layer.
        keep_fp8: give FP8 matrices as NxD's quantised layers take them, the payload as `x.weight` and fp32 scales as
            `x.scale`. Otherwise they, as all other quantised matrices, are multiplied out into `dtype`.
        rounds_inputs: the caller rounds inputs where the format asks for it, see `load_inputs`.

    Returns:
        Contiguous CPU tensors by runtime name. With tied embeddings the head is the embedding's own tensor, unless the
        checkpoint holds a head with other values: it is used then, as by transformers.

    Raises:
        CheckpointError: with every missing, unknown and wrongly shaped tensor.
        ConfigError: the model does not split into `tp` ranks, or has no multi-token-prediction layer to include; the
            format is not served, or rounds inputs and the caller does not.
    """
    with CheckpointFiles(path) as files:
        if not rounds_inputs and files.format is not None and files.format.inputs - {Inputs.PLAIN}:
            problem = "asks for inputs of 8 bits, which are rounded on a CPU alone"
            raise ConfigError("model", files.format.name, problem, "Use device=cpu, or a checkpoint for weights alone")
        own = check_files(files, config, include_mtp)
        layout = rank_weights(own, tp, rank, include_mtp)
        weights: dict[str, torch.Tensor] = {}
        for name, weight in layout.items():
            if own.tie_word_embeddings and name == HEAD:
                continue
            if keep_fp8 and _is_fp8(files, name, weight):
                weights |= _fp8(files, name, weight)
            else:
                weights[name] = assemble(weight, files.read, dtype)
    if config.tie_word_embeddings:
        _tie(weights, own)
    return weights


def is_quantised(path: str | Path) -> bool:
    """Whether a checkpoint has matrices in codes of a byte."""
    with CheckpointFiles(path) as files:
        return files.quantised


def stored_bytes(path: str | Path) -> int:
    """Bytes of a checkpoint's files: what weights take that are held as they are stored, or somewhat less."""
    return sum(file.stat().st_size for file in checkpoint_files(Path(path))[0])


def stored_weights(
    path: str | Path, config: ModelConfig, include_mtp: bool = False
) -> Iterator[tuple[str, torch.Tensor | QuantisedWeight]]:
    """The weights of the unsplit model in the numbers that they are stored in, one after the other, by runtime name.

    A quantised matrix is given as such, unless it is made of several that are stored in different ways: those are
    multiplied out. Other matrices are bfloat16 or fp32, all else is fp32. A tied head is given as a weight of its own.

    Raises:
        CheckpointError, ConfigError: as `load_weights`.
    """
    with CheckpointFiles(path) as files:
        for name, weight in rank_weights(check_files(files, config, include_mtp), include_mtp=include_mtp).items():
            held = _quantised(files, weight)
            if held is None:
                parts = [files.read(piece) for piece in weight.slices]
                narrow = weight.cast is Cast.MODEL and parts[0].ndim == 2
                narrow = narrow and all(part.dtype == torch.bfloat16 for part in parts)
                stored = dict(zip(weight.slices, parts, strict=True))
                yield name, assemble(weight, stored.__getitem__, torch.bfloat16 if narrow else torch.float32)
            else:
                yield name, held


def _quantised(files: CheckpointFiles, weight: RankWeight) -> QuantisedWeight | None:
    if any(files.layout(piece.name) is None for piece in weight.slices):
        return None
    return join([_whole_blocks(files, piece) for piece in weight.slices])


def _whole_blocks(files: CheckpointFiles, piece: Slice) -> QuantisedWeight:
    """A piece, cut out of the blocks that it touches."""
    start, stop = files.blocks_of(piece)
    held = files.read_quantised(replace(piece, start=start, stop=stop))
    if (start, stop) == (piece.start, piece.stop):
        return held
    return held.by_rows().part(piece.dim, piece.start - start, piece.stop - piece.start)


def load_inputs(path: str | Path, config: ModelConfig, include_mtp: bool = False) -> dict[str, Inputs]:
    """What becomes of the inputs of the unsplit model's matrices, by runtime name, where it is not nothing.

    Raises:
        CheckpointError: matrices that are one at run time want their inputs differently.
    """
    found: dict[str, Inputs] = {}
    with CheckpointFiles(path) as files:
        if files.format is None or not files.format.inputs - {Inputs.PLAIN}:
            return found
        for name, weight in rank_weights(check_files(files, config, include_mtp), include_mtp=include_mtp).items():
            layouts = {piece.name: files.layout(piece.name) for piece in weight.slices}
            kinds = {Inputs.PLAIN if layout is None else layout.inputs for layout in layouts.values()}
            if len(kinds) > 1:
                problem = f"{name} is one matrix here, and its inputs cannot be rounded for some of {sorted(layouts)}"
                raise CheckpointError(files.path, problem=f"{problem} only")
            if kinds != {Inputs.PLAIN}:
                found[name] = kinds.pop()
    return found


def check_files(files: CheckpointFiles, config: ModelConfig, include_mtp: bool = False) -> ModelConfig:
    """Compare a checkpoint with the model; the model as the checkpoint has it, whose head is tied only if it has none.

    Raises:
        CheckpointError: with every missing, unknown and wrongly shaped tensor.
    """
    if files.holds(HEAD):
        config = replace(config, tie_word_embeddings=False)
    files.check(text_shapes(config) | (mtp_shapes(config) if include_mtp else {}))
    return config


def _tie(weights: dict[str, torch.Tensor], own: ModelConfig) -> None:
    """The embedding as the head, in place, if the checkpoint has no head or the same one."""
    embedding, head = weights["embed_tokens.weight"], weights.get(HEAD)
    if own.tie_word_embeddings or (head is not None and head.dtype == embedding.dtype and torch.equal(head, embedding)):
        weights[HEAD] = embedding
        return
    logger.warning("config.json says tie_word_embeddings, but lm_head.weight is there with other values, and is used.")


def scale_name(name: str) -> str:
    """Where the scales of a runtime weight are, of `x.weight` as NxD's quantised layers have them."""
    return name.removesuffix(".weight") + SCALE if name.endswith(".weight") else f"{name}_scale"


def _is_fp8(files: CheckpointFiles, name: str, weight: RankWeight) -> bool:
    held = {files.is_fp8(piece.name) for piece in weight.slices}
    if len(held) > 1:
        names = ", ".join(sorted({piece.name for piece in weight.slices}))
        raise CheckpointError(files.path, problem=f"{name} is one matrix here, so all or none of {names} must be FP8")
    return held.pop()


def _fp8(files: CheckpointFiles, name: str, weight: RankWeight) -> dict[str, torch.Tensor]:
    if weight.stacked:
        each = len(weight.slices) // weight.stacked
        one = replace(weight, stacked=0)
        experts = [
            _fp8(files, name, replace(one, slices=weight.slices[first : first + each]))
            for first in range(0, len(weight.slices), each)
        ]
        return {key: torch.stack([expert[key] for expert in experts]) for key in experts[0]}
    payloads, scales = zip(*(files.read_fp8(piece) for piece in weight.slices), strict=True)
    joined = {name: payloads, scale_name(name): scales}
    # A split of the inputs is one slice, so its scales by channel, which every rank needs all of, are never joined.
    return {
        key: (parts[0] if len(parts) == 1 else torch.cat(parts, weight.dim)).contiguous()
        for key, parts in joined.items()
    }
