"""The safetensors files of a checkpoint folder, memory-mapped, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import ConfigError
from .names import HEAD, MTP_PREFIX, TEXT_PREFIXES, Shapes, canonical_name
from .sharding import Slice

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = ("F32", "BF16", "F16")


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A tensor that is there but cannot be used."""

    name: str
    found: str
    expected: str


class CheckpointError(ConfigError):
    """A checkpoint whose files or tensors are not those that its configuration asks for. Lists all of them."""

    def __init__(
        self,
        path: Path,
        missing: Sequence[str] = (),
        unknown: Sequence[str] = (),
        wrong: Sequence[Mismatch] = (),
        problem: str = "does not hold the weights that its config.json describes",
    ) -> None:
        self.missing, self.unknown, self.wrong = tuple(missing), tuple(unknown), tuple(wrong)
        lines = [problem]
        lines += [f"  missing: {name}" for name in self.missing]
        lines += [f"  unknown: {name}" for name in self.unknown]
        lines += [f"  wrong: {item.name} is {item.found}, must be {item.expected}" for item in self.wrong]
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
        self._unknown: list[str] = []
        try:
            for file in self._files():
                self._open(file)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> CheckpointFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def check(self, needed: Shapes) -> None:
        """Compare with the tensors `needed`. A head beside a tied embedding and the MTP layer may be there unused.

        Raises:
            CheckpointError: with every missing, unknown and wrongly shaped or typed tensor.
        """
        held = {name: self._slice(name) for name in self._tensors}
        wrong = []
        for name, shape in needed.items():
            if name in held:
                found, dtype = tuple(held[name].get_shape()), held[name].get_dtype()
                if found != shape or dtype not in DTYPES:
                    wrong.append(Mismatch(self._tensors[name][1], f"{dtype} {found}", f"{' or '.join(DTYPES)} {shape}"))
        missing = [self._stored_name(name) for name in needed if name not in held]
        unused = [name for name in held if name not in needed and name != HEAD and not name.startswith(MTP_PREFIX)]
        unknown = self._unknown + [self._tensors[name][1] for name in unused]
        if missing or unknown or wrong:
            raise CheckpointError(self.path, missing, sorted(unknown), wrong)

    def read(self, piece: Slice) -> torch.Tensor:
        """The slice in its stored dtype; only its bytes are read."""
        index: Any = slice(piece.start, piece.stop)
        tensor: torch.Tensor = self._slice(piece.name)[index if piece.dim == 0 else (slice(None), index)]
        return tensor

    def _slice(self, name: str) -> Any:
        opened, stored = self._tensors[name]
        return opened.get_slice(stored)

    def _files(self) -> list[Path]:
        index = self.path / INDEX
        if not index.is_file():
            if not (self.path / SINGLE).is_file():
                raise CheckpointError(self.path, problem=f"has neither {SINGLE} nor {INDEX}")
            return [self.path / SINGLE]
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(self.path, problem=f"has an {INDEX} that cannot be read ({error!r})") from error
        absent = [name for name in names if not (self.path / name).is_file()]
        if absent:
            raise CheckpointError(self.path, absent, problem=f"lacks files that its {INDEX} names")
        return [self.path / name for name in names]

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
        nested = any(stored.startswith(TEXT_PREFIXES[0]) for _, stored in self._tensors.values())
        return TEXT_PREFIXES[0 if nested else 1] + name
