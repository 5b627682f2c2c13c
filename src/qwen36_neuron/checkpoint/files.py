"""The safetensors files of a checkpoint folder, memory-mapped, and what is wrong with them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import ConfigError
from .experts import Place, as_held, place
from .formats import Expected, Layout, QuantisedWeight, format_of
from .formats.layout import cut
from .formats.own_fp8 import PUBLISHED_SCALE, SCALE, OwnFp8
from .fp8 import block_shape
from .names import HEAD, MTP_PREFIX, TEXT_PREFIXES, KVScale, Shapes, canonical_name, kv_scale, matrix_layer
from .sharding import Slice

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = ("F32", "BF16", "F16")
FP8 = "F8_E4M3"


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
        ConfigError: config.json declares a format that is not served.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.format = format_of(self.path)
        self._stack = ExitStack()
        self._tensors: dict[str, tuple[Any, str]] = {}
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
        """Whether there is a tensor of this canonical name, in whatever format."""
        layout = self.layout(name)
        return name in self._tensors or (layout is not None and bool(self._parts(name)))

    def check(self, needed: Shapes) -> None:
        """Compare with the tensors `needed`. The MTP layer may be there unused, or its files not at all.

        Raises:
            CheckpointError: with every missing, unknown and wrongly shaped or typed tensor, or because a mixture's
                experts are in both published layouts.
        """
        missing: list[str] = []
        wrong: list[Mismatch] = []
        known: set[str] = set()
        try:
            needed = as_held(needed, self._tensors)
        except ValueError as error:
            raise CheckpointError(self.path, problem=str(error)) from error
        for name, shape in needed.items():
            layout = self.layout(name)
            try:
                parts = _plain(shape) if layout is None else layout.tensors((shape[0], shape[1]))
            except ValueError as error:
                wrong.append(Mismatch(self._stored_name(name), f"of a matrix that {error}", "in another format"))
                continue
            base = name if layout is None else name.removesuffix(".weight")
            for ending, expected in parts.items():
                part = base + ending
                known.add(part)
                if part not in self._tensors:
                    missing.append(self._stored_name(part))
                    continue
                dtype, found = self._found(part)
                if found != expected.shape or dtype not in expected.dtypes:
                    hint = self._hint(dtype) if layout is None else ""
                    wrong.append(Mismatch(self._tensors[part][1], f"{dtype} {found}", f"{expected}{hint}"))
            if layout is not None and not wrong and not missing and self._shape(name, layout) != shape:
                wrong.append(Mismatch(self._stored_name(name), f"of {self._shape(name, layout)}", str(shape)))
        known |= {name for name in self._tensors if kv_scale(name) is not None}
        unused = [
            name for name in self._tensors if name not in known and name != HEAD and not name.startswith(MTP_PREFIX)
        ]
        unknown = self._unknown + [self._tensors[name][1] for name in unused]
        if missing or unknown or wrong:
            raise CheckpointError(self.path, [*(self.absent if missing else ()), *missing], sorted(unknown), wrong)
        if self.absent:
            files = ", ".join(self.absent)
            logger.warning("%s lacks %s, which its index names: only what is not needed is there.", self.path, files)

    def read(self, piece: Slice) -> torch.Tensor:
        """The slice in its stored dtype, or multiplied out into fp32 where it is quantised; only its bytes are read.

        Raises:
            CheckpointError: the matrix is not as its format says.
        """
        layout = self.layout(piece.name)
        if layout is None:
            where = self._joined(piece.name)
            if where is not None:
                return where.matrix(self._slice(where.name)).narrow(piece.dim, piece.start, piece.stop - piece.start)
            return cut(self._slice(piece.name), piece.dim, piece.start, piece.stop)
        start, stop = self.blocks_of(piece)
        held = self.read_quantised(replace(piece, start=start, stop=stop))
        return held.dequantise().narrow(piece.dim, piece.start - start, piece.stop - piece.start)

    def blocks_of(self, piece: Slice) -> tuple[int, int]:
        """Where what is read of a quantised matrix begins and ends, for a piece of it to be cut out of that."""
        layout = self.layout(piece.name)
        assert layout is not None
        shape = self._shape(piece.name, layout)
        step, size = layout.steps(shape)[piece.dim], shape[piece.dim]
        return piece.start // step * step, min(-(-piece.stop // step) * step, size)

    def read_quantised(self, piece: Slice) -> QuantisedWeight:
        """A part of a quantised matrix that begins and ends where its layout can be cut, in its own numbers.

        Raises:
            CheckpointError: the matrix is not as its format says.
        """
        layout = self.layout(piece.name)
        assert layout is not None
        try:
            return layout.read(self._parts(piece.name), piece)
        except ValueError as error:
            stored = self._stored_name(piece.name.removesuffix(".weight"))
            raise CheckpointError(
                self.path, problem=f"is not what its quantization_config says: {stored} {error}"
            ) from error

    def read_fp8(self, piece: Slice) -> tuple[torch.Tensor, torch.Tensor]:
        """The slice of an FP8 matrix as stored, with its scales: float8 [out, in] and fp32 [out, 1] or of its blocks.

        Raises:
            CheckpointError: the scales are as published, whose payload a Trn2 misreads, or the slice cuts a block.
        """
        layout = self.layout(piece.name)
        if not isinstance(layout, OwnFp8) or layout.ending == PUBLISHED_SCALE:
            raise CheckpointError(self.path, problem="has FP8 weights up to 448; qwen36 compile writes them up to 240")
        size = layout.block[piece.dim]
        if size < self._shape(piece.name, layout)[piece.dim] and (piece.start % size or piece.stop % size):
            stored = self._tensors[piece.name.removesuffix(".weight") + SCALE][1]
            raise CheckpointError(self.path, problem=f"{stored}: a rank's part would cut a block of {size}")
        held = self.read_quantised(piece)
        return held.codes, held.scales

    def quantised_shape(self, name: str) -> tuple[int, int]:
        """Of a quantised matrix [out, in].

        Raises:
            CheckpointError: one of its tensors is not there, or is not what the others ask for.
        """
        layout, layer = self.layout(name), name.removesuffix(".weight")
        assert layout is not None
        missing = [layer + ending for ending in layout.endings if layer + ending not in self._tensors]
        if missing:
            raise CheckpointError(self.path, [self._stored_name(part) for part in missing])
        shape = self._shape(name, layout)
        wrong = []
        for ending, expected in layout.tensors(shape).items():
            dtype, found = self._found(layer + ending)
            if found != expected.shape or dtype not in expected.dtypes:
                wrong.append(Mismatch(self._tensors[layer + ending][1], f"{dtype} {found}", str(expected)))
        if wrong:
            raise CheckpointError(self.path, wrong=wrong)
        return shape

    @property
    def stored(self) -> dict[str, str]:
        """What tensors are called in the files, by canonical name."""
        return {name: stored for name, (_, stored) in self._tensors.items()}

    @property
    def quantised(self) -> bool:
        """Whether there are matrices in codes of a byte."""
        return self.format is not None or any(self.is_fp8(name) for name in self._tensors)

    def kv_scales(self) -> dict[KVScale, Callable[[], torch.Tensor]]:
        """What reads each scale of keys and values that there is."""

        def reader(name: str) -> Callable[[], torch.Tensor]:
            opened, stored = self._tensors[name]
            return lambda: opened.get_tensor(stored)

        return {found: reader(name) for name in self._tensors if (found := kv_scale(name)) is not None}

    def is_fp8(self, name: str) -> bool:
        """Whether the tensor of this canonical name is stored in FP8."""
        return name in self._tensors and self._found(name)[0] == FP8

    def layout(self, name: str) -> Layout | None:
        """How the tensor of this canonical name is quantised; None if it is not.

        Without a configuration a matrix in FP8 speaks for itself. The draft layer is often copied into a quantised
        checkpoint as it was, whatever the configuration says: where its matrix is there in plain numbers, it is that.
        Nor do tools quantise experts that are one tensor: it is no matrix of a layer to them.
        """
        layer = matrix_layer(name)
        if layer is None or self._joined(name) is not None:
            return None
        if self.format is None:
            return self._own_fp8(name, layer)
        if name.startswith(MTP_PREFIX) and name in self._tensors and self._found(name)[0] in DTYPES:
            return None
        return self.format.layout(layer)

    def _joined(self, name: str) -> Place | None:
        """Where an expert's matrix is in a tensor for all experts, if it is in one here."""
        where = None if name in self._tensors else place(name)
        return where if where is not None and where.name in self._tensors else None

    def _hint(self, dtype: str) -> str:
        """What a tensor of a type that is not plain would have to be besides, to be read."""
        if dtype in DTYPES:
            return ""
        if self.format is not None:
            return ", or its layer among those that quantization_config says are quantised"
        return ", or have scales by channel or 128x128 block" if dtype == FP8 else ", or be declared in config.json"

    def _own_fp8(self, name: str, layer: str) -> OwnFp8 | None:
        """An FP8 matrix with scales that fit it."""
        if not self.is_fp8(name):
            return None
        for ending in (SCALE, PUBLISHED_SCALE):
            if layer + ending in self._tensors:
                shape = self._found(name)[1]
                block = block_shape((shape[0], shape[1]), self._found(layer + ending)[1])
                return None if block is None else OwnFp8(ending, block)
        return None

    def _parts(self, name: str) -> dict[str, Any]:
        """The tensors of a matrix by what they have after their layer's name."""
        layout, layer = self.layout(name), name.removesuffix(".weight")
        assert layout is not None
        return {ending: self._slice(layer + ending) for ending in layout.endings if layer + ending in self._tensors}

    def _shape(self, name: str, layout: Layout) -> tuple[int, int]:
        return layout.shape(self._parts(name))

    def _found(self, name: str) -> tuple[str, tuple[int, ...]]:
        held = self._slice(name)
        return held.get_dtype(), tuple(held.get_shape())

    def _slice(self, name: str) -> Any:
        opened, stored = self._tensors[name]
        return opened.get_slice(stored)

    def _open(self, file: Path) -> None:
        try:
            opened = self._stack.enter_context(safe_open(file, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(self.path, problem=f"has an unreadable file: {file.name} ({error})") from error
        for stored in opened.keys():  # noqa: SIM118 - not a mapping
            name = canonical_name(stored)
            if name is None:
                continue
            if name in self._tensors:
                self._unknown.append(stored)
            else:
                self._tensors[name] = (opened, stored)

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


def _plain(shape: tuple[int, ...]) -> dict[str, Expected]:
    return {"": Expected(DTYPES, shape)}
