"""What becomes of every tensor of a checkpoint whose matrices are converted to FP8, or to bfloat16 from eight bits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from safetensors import safe_open

from ..checkpoint.weight_format import WeightFormat
from ..errors import ConfigError
from .coded import Coded, coded_tensors
from .experts import Place, members, place
from .files import DTYPES, FP8, PUBLISHED_SCALE, SCALE, CheckpointFiles, checkpoint_files, scaled_weight
from .fp8 import BLOCK, Scales
from .names import HEAD, canonical_name
from .stream import Entry

PARTS = {
    "mlp": r"layers\.\d+\.mlp\.((experts\.\d+|shared_expert)\.)?(gate|up|down)_proj\.weight",
    "attention": r"layers\.\d+\.self_attn\.[qkvo]_proj\.weight",
    "deltanet": r"layers\.\d+\.linear_attn\.(in_proj_qkv|in_proj_z|out_proj)\.weight",
    "head": re.escape(HEAD),
}
"""Matrices that may be FP8, by part: not norms, embeddings, conv1d, A_log, dt_bias, in_proj_a and in_proj_b, MTP.

A mixture's MLPs are its routed experts and the shared one; routers and the shared expert's gate are no part."""

FORMATS: dict[WeightFormat, frozenset[str]] = {
    WeightFormat.BF16: frozenset(),
    WeightFormat.FP8_MLP: frozenset({"mlp"}),
    WeightFormat.FP8: frozenset(PARTS),
}
"""The parts of the formats that memory is planned for and graphs are compiled for."""


class Action(StrEnum):
    """What happens to a tensor."""

    COPY = "copy"
    QUANTISE = "quantise"
    HALVE = "halve"
    EXPAND = "expand to bf16"


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of the checkpoint to convert.

    Attributes:
        place: where it is in a tensor for all experts, under a name of its own.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """A tensor and what becomes of it.

    Attributes:
        source: for a matrix in INT8 its name, type and shape as a plain one, and the file of its codes.
        scale: of a matrix in FP8 blocks.
        coded: canonical name of a matrix in INT8, which is read by it.
    """

    source: Source
    action: Action
    scale: Source | None = None
    coded: str | None = None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What it leaves in a file."""
        name, shape = self.source.name, self.source.shape
        if self.action is Action.COPY:
            return (Entry(name, self.source.dtype, shape),)
        if self.action is Action.EXPAND:
            return (Entry(name, "BF16", shape),)
        scale = self.scale.shape if self.action is Action.HALVE and self.scale else (shape[0], 1)
        return Entry(name, FP8, shape), Entry(scale_name(name), "F32", scale)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries)


@dataclass(frozen=True)
class Conversion:
    """The conversion of the checkpoint in `source`.

    Attributes:
        parts: keys of PARTS to convert; other matrices are copied, or multiplied out to bf16 if they have eight bits.
        scales: None keeps published blocks as blocks, which is exact, and gives everything else a scale a channel.
    """

    source: Path
    parts: frozenset[str] = FORMATS[WeightFormat.FP8_MLP]
    scales: Scales | None = None

    def __post_init__(self) -> None:
        if self.parts - set(PARTS):
            raise ConfigError("parts", sorted(self.parts), "must be parts of the network", f"Known: {', '.join(PARTS)}")

    @cached_property
    def tensors(self) -> dict[str, Source]:
        """All tensors of the checkpoint, vision tower included."""
        found: dict[str, Source] = {}
        for file in source_files(self.source):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    held = opened.get_slice(name)
                    found[name] = Source(name, file.name, held.get_dtype(), tuple(held.get_shape()))
        return found

    @cached_property
    def coded(self) -> dict[str, Coded]:
        """The tensors that are parts of matrices in INT8, by name."""
        with CheckpointFiles(self.source) as files:
            return coded_tensors(files)

    @cached_property
    def work(self) -> tuple[Work, ...]:
        """Every tensor of the result, in the order of the source's files.

        Raises:
            ConfigError: a matrix cannot be converted as asked, or one asked for is not there.
        """
        listed = sorted(self.tensors.values(), key=lambda t: (t.file, t.name))
        work = tuple(
            self._work(matrix) for tensor in listed if self._owner(tensor) is None for matrix in self._apart(tensor)
        )
        for part in sorted(self.parts):
            if not any(part_of(w.source.name) == part for w in work):
                raise ConfigError(
                    "parts", part, "the checkpoint has no such matrices (a tied head is the embedding)", "Leave it out"
                )
        actions = {w.action for w in work}
        if not self.parts and Action.EXPAND not in actions:
            raise ConfigError("parts", [], "nothing is to be converted, and no matrix is in eight bits", "Name parts")
        if Action.QUANTISE in actions and (Action.HALVE in actions or self.scales is Scales.BLOCK):
            plain = sorted(w.source.name for w in work if w.action is Action.QUANTISE)
            raise ConfigError(
                "scales",
                "block",
                f"{len(plain)} matrices, {plain[0]} the first, are not in blocks, and all must be scaled alike",
                "Use --scales channel, or convert fewer parts",
            )
        return work

    @property
    def layout(self) -> Scales:
        """What the result's scales are of."""
        return Scales.BLOCK if any(w.action is Action.HALVE for w in self.work) else Scales.CHANNEL

    def _apart(self, tensor: Source) -> Iterator[Source]:
        """The tensor; of one for all experts that are converted, the matrices in it, under names of their own."""
        names = [name for name in members(tensor.name, tensor.shape) if part_of(name) in self.parts]
        for name in names:
            where = place(name)
            assert where is not None
            rows = tensor.shape[1] // (1 if where.half is None else 2)
            yield replace(tensor, name=name, shape=(rows, *tensor.shape[2:]), place=replace(where, name=tensor.name))
        if not names:
            yield tensor

    def _owner(self, tensor: Source) -> str | None:
        """The matrix of which a tensor is not the part that stands for it."""
        coded = self.coded.get(tensor.name)
        if coded is not None:
            return None if coded.codes else coded.matrix
        weight = scaled_weight(tensor.name)
        return weight if weight in self.tensors and self.tensors[weight].dtype == FP8 else None

    def _work(self, tensor: Source) -> Work:
        wanted = part_of(tensor.name) in self.parts
        coded = self.coded.get(tensor.name)
        if coded is not None:
            action = Action.QUANTISE if part_of(coded.stored) in self.parts else Action.EXPAND
            return Work(Source(coded.stored, tensor.file, "I8", coded.shape), action, coded=coded.matrix)
        if tensor.dtype != FP8:
            if tensor.dtype not in DTYPES:
                raise ConfigError(
                    tensor.name,
                    tensor.dtype,
                    "is no number format that can be converted",
                    f"Use one of {DTYPES} or {FP8}",
                )
            return Work(tensor, Action.QUANTISE if wanted else Action.COPY)
        base = tensor.name.removesuffix(".weight")
        scale = self.tensors.get(base + PUBLISHED_SCALE)
        expected = tuple(-(-size // BLOCK) for size in tensor.shape)
        if scale is None or scale.shape != expected:
            raise ConfigError(
                tensor.name,
                f"{FP8} {tensor.shape}",
                f"needs {base}{PUBLISHED_SCALE} of shape {expected}, a scale for each {BLOCK} x {BLOCK} block",
                "Convert the published FP8 or bf16 checkpoint",
            )
        if not wanted:
            return Work(tensor, Action.EXPAND, scale)
        if self.scales is Scales.CHANNEL:
            return Work(tensor, Action.QUANTISE, scale)
        if any(size % BLOCK for size in tensor.shape):
            raise ConfigError(
                tensor.name, tensor.shape, f"NxD cuts whole blocks of {BLOCK} only", "Use --scales channel"
            )
        return Work(tensor, Action.HALVE, scale)


def part_of(name: str) -> str | None:
    """The key of PARTS that a checkpoint tensor belongs to."""
    canonical = canonical_name(name)
    return next((part for part, pattern in PARTS.items() if canonical and re.fullmatch(pattern, canonical)), None)


def scale_name(weight: str) -> str:
    """Where the scales of matrix `weight` are written."""
    return weight.removesuffix(".weight") + SCALE


def source_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint. Raises CheckpointError if there are none, or one that is needed is not."""
    return checkpoint_files(folder)[0]
