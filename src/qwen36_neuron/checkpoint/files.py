"""The safetensors files of a checkpoint folder, memory-mapped, and what is wrong with them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import ConfigError
from .fp8 import block_shape, dequantise
from .names import HEAD, MTP_PREFIX, TEXT_PREFIXES, Shapes, canonical_name
from .sharding import Slice

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = ("F32", "BF16", "F16")
FP8 = "F8_E4M3"
SCALE, PUBLISHED_SCALE = ".scale", ".weight_scale_inv"
"""Where the scales of an FP8 matrix `x.weight` are: in NxD's layout, as `qwen36 compile` writes, and as published."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A tensor that is there but cannot be used."""

    name: str
    found: str
    expected: str


LISTED = 8
"""Tensors or files that an error lists; it counts the rest."""

logger = logging.getLogger(__name__)


class CheckpointError(ConfigError):
    """A checkpoint whose files or tensors are not those that its configuration asks for.

    Holds all of them; the message is ten lines at most, and has some of each kind.
    """

    def __init__(
        self,
        path: Path,
        missing: Sequence[str] = (),
        unknown: Sequence[str] = (),
        wrong: Sequence[Mismatch] = (),
        problem: str = "does not hold the weights that its config.json describes",
    ) -> None:
        self.missing, self.unknown, self.wrong = tuple(missing), tuple(unknown), tuple(wrong)
        kinds = {
            "missing": list(self.missing),
            "unknown": list(self.unknown),
            "wrong": [f"{item.name} is {item.found}, must be {item.expected}" for item in self.wrong],
        }
        lines = [problem, *_listed(kinds)]
        super().__init__("model", str(path), "\n".join(lines), "Download the checkpoint again, or correct config.json")


class CheckpointFiles:
    """Tensors of a checkpoint folder by canonical name. A context manager; nothing is read until asked for.

    Raises:
        CheckpointError: files are missing or are not safetensors.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._stack = ExitStack()
        self._tensors: dict[str, tuple[Any, str]] = {}
        self._scales: dict[str, tuple[Any, str]] = {}
        self._unknown: list[str] = []
        try:
            present, self.absent = checkpoint_files(self.path)
            for file in present:
                self._open(file)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> CheckpointFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def holds(self, name: str) -> bool:
        """Whether there is a tensor of this canonical name."""
        return name in self._tensors

    def check(self, needed: Shapes) -> None:
        """Compare with the tensors `needed`. The MTP layer may be there unused, or its files not at all.

        Raises:
            CheckpointError: with every missing, unknown and wrongly shaped or typed tensor.
        """
        held = {name: self._slice(name) for name in self._tensors}
        wrong = []
        for name, shape in needed.items():
            if name in held:
                found, dtype = tuple(held[name].get_shape()), held[name].get_dtype()
                if found != shape or (dtype not in DTYPES and self._block(name) is None):
                    expected = f"{' or '.join(DTYPES)} {shape}"
                    if dtype == FP8:
                        expected += ", or have scales by channel or 128x128 block"
                    wrong.append(Mismatch(self._tensors[name][1], f"{dtype} {found}", expected))
        missing = [self._stored_name(name) for name in needed if name not in held]
        unused = [name for name in held if name not in needed and name != HEAD and not name.startswith(MTP_PREFIX)]
        unknown = self._unknown + [self._tensors[name][1] for name in unused]
        unknown += [stored for name, (_, stored) in self._scales.items() if not self.is_fp8(name)]
        if missing or unknown or wrong:
            raise CheckpointError(self.path, [*(self.absent if missing else ()), *missing], sorted(unknown), wrong)
        if self.absent:
            files = ", ".join(self.absent)
            logger.warning("%s lacks %s, which its index names: only what is not needed is there.", self.path, files)

    def read(self, piece: Slice) -> torch.Tensor:
        """The slice in its stored dtype, or in fp32 where it is stored in FP8; only its bytes are read."""
        if not self.is_fp8(piece.name):
            return _cut(self._slice(piece.name), piece)
        block = self._fp8_block(piece.name)
        scales = _held(self._scales[piece.name])
        size = block[piece.dim]
        one = scales.get_shape()[piece.dim] == 1
        lead = 0 if one else piece.start % size
        payload = _cut(self._slice(piece.name), replace(piece, start=piece.start - lead))
        scale = scales[:] if one else _cut(scales, _over(piece, size))
        return dequantise(payload, scale, block).narrow(piece.dim, lead, piece.stop - piece.start)

    def read_fp8(self, piece: Slice) -> tuple[torch.Tensor, torch.Tensor]:
        """The slice of an FP8 matrix as stored, with its scales: float8 [out, in] and fp32 [out, 1] or of its blocks.

        Raises:
            CheckpointError: the scales are as published, whose payload a Trn2 misreads, or the slice cuts a block.
        """
        scales, stored = _held(self._scales[piece.name]), self._scales[piece.name][1]
        size = self._fp8_block(piece.name)[piece.dim]
        whole = scales.get_shape()[piece.dim] == 1
        if stored.endswith(PUBLISHED_SCALE):
            raise CheckpointError(self.path, problem="has FP8 weights up to 448; qwen36 compile writes them up to 240")
        if not whole and (piece.start % size or piece.stop % size):
            raise CheckpointError(self.path, problem=f"{stored}: a rank's part would cut a block of {size}")
        return _cut(self._slice(piece.name), piece), scales[:] if whole else _cut(scales, _over(piece, size))

    def is_fp8(self, name: str) -> bool:
        """Whether the tensor of this canonical name is stored in FP8."""
        return name in self._tensors and bool(self._slice(name).get_dtype() == FP8)

    def _block(self, name: str) -> tuple[int, int] | None:
        """Rows and columns that share a scale; None if the tensor is not FP8 with scales that fit it."""
        shape = self._slice(name).get_shape()
        if not self.is_fp8(name) or name not in self._scales or len(shape) != 2:
            return None
        return block_shape(tuple(shape), tuple(_held(self._scales[name]).get_shape()))

    def _fp8_block(self, name: str) -> tuple[int, int]:
        block = self._block(name)
        if block is None:
            raise CheckpointError(self.path, wrong=[Mismatch(name, f"{FP8} without fitting scales", "scaled")])
        return block

    def _slice(self, name: str) -> Any:
        return _held(self._tensors[name])

    def _open(self, file: Path) -> None:
        try:
            opened = self._stack.enter_context(safe_open(file, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(self.path, problem=f"has an unreadable file: {file.name} ({error})") from error
        for stored in opened.keys():  # noqa: SIM118 - not a mapping
            name = canonical_name(stored)
            if name is None:
                continue
            weight = scaled_weight(name)
            table = self._tensors if weight is None else self._scales
            if (weight or name) in table:
                self._unknown.append(stored)
            else:
                table[weight or name] = (opened, stored)

    def _stored_name(self, name: str) -> str:
        """How this checkpoint would spell a canonical name."""
        if name == HEAD or name.startswith(MTP_PREFIX):
            return name
        held = ((stored, own) for own, (_, stored) in self._tensors.items() if not own.startswith(("lm_head", "mtp")))
        stored, own = next(held, (TEXT_PREFIXES[0], ""))
        return stored.removesuffix(own) + name


def checkpoint_files(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The safetensors files of a checkpoint folder, and the names of those that are not there.

    A file that the index names may be absent if all its tensors are of the MTP layer or of the vision tower.

    Raises:
        CheckpointError: there are none, another one is absent, or the index cannot be read.
    """
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise CheckpointError(folder, problem=f"has neither {SINGLE} nor {INDEX}")
        return [folder / SINGLE], ()
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(listed.values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(folder, problem=f"has an {INDEX} that cannot be read ({error!r})") from error
    absent = {name for name in names if not (folder / name).is_file()}
    lost = {file for tensor, file in listed.items() if file in absent and not _optional(tensor)}
    if lost or len(absent) == len(names):
        raise CheckpointError(folder, sorted(lost or absent), problem=f"lacks files that its {INDEX} names")
    return [folder / name for name in names if name not in absent], tuple(sorted(absent))


def _optional(stored: str) -> bool:
    name = canonical_name(stored)
    return name is None or name.startswith(MTP_PREFIX)


def _listed(kinds: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines for LISTED of the entries, as many of each kind as there is room for, and one that counts the others."""
    shown = dict.fromkeys(kinds, 0)
    while sum(shown.values()) < LISTED and (open_ := [kind for kind in kinds if shown[kind] < len(kinds[kind])]):
        shown[min(open_, key=lambda kind: shown[kind])] += 1
    lines = [f"  {kind}: {entry}" for kind, entries in kinds.items() for entry in entries[: shown[kind]]]
    more = [f"{len(kinds[kind]) - count} {kind}" for kind, count in shown.items() if count < len(kinds[kind])]
    return lines + ([f"  and more: {', '.join(more)}"] if more else [])


def scaled_weight(name: str) -> str | None:
    """The name of the matrix that a tensor of scales belongs to; None for any other tensor."""
    for ending in (SCALE, PUBLISHED_SCALE):
        if name.endswith(ending):
            return name.removesuffix(ending) + ".weight"
    return None


def _held(held: tuple[Any, str]) -> Any:
    opened, stored = held
    return opened.get_slice(stored)


def _cut(tensor: Any, piece: Slice) -> torch.Tensor:
    index: Any = slice(piece.start, piece.stop)
    cut: torch.Tensor = tensor[index if piece.dim == 0 else (slice(None), index)]
    return cut


def _over(piece: Slice, size: int) -> Slice:
    """The scales of the blocks of `size` that a slice touches."""
    return replace(piece, start=piece.start // size, stop=-(-piece.stop // size))
