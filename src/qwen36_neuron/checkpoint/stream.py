"""A safetensors file written piece by piece, so that a tensor need never be in memory whole.

The safetensors package writes from complete tensors only. The file is 8 bytes of header size, a JSON header, the data:
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType

import torch

WIDTHS = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1}
"""Bytes of an element, by the file format's names of the types that checkpoints of this model have."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * WIDTHS[self.dtype]


class StreamWriter:
    """Writes one file; it takes its name when it is whole, and is not there before. A context manager."""

    def __init__(self, file: Path, entries: Sequence[Entry]) -> None:
        self.file = file
        self._part = file.with_name(file.name + ".part")
        # Wide types first, so that every tensor is aligned to its element.
        ordered = sorted(entries, key=lambda entry: (-WIDTHS[entry.dtype], entry.name))
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._starts: dict[str, int] = {}
        end = 0
        for entry in ordered:
            self._starts[entry.name] = end
            header[entry.name] = {
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "data_offsets": [end, end + entry.nbytes],
            }
            end += entry.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._head = len(text).to_bytes(8, "little") + text
        self._missing = end

    def __enter__(self) -> StreamWriter:
        self._out = self._part.open("wb")
        self._out.write(self._head)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._missing:
            self._out.close()
            raise ValueError(f"{self.file.name}: {self._missing} bytes were not written")
        if kind is None:
            self._out.flush()
            os.fsync(self._out.fileno())
        self._out.close()
        if kind is None:
            self._part.replace(self.file)

    def write(self, name: str, offset: int, tensor: torch.Tensor) -> int:
        """Write `tensor` at byte `offset` of tensor `name`; gives the offset after it. Every byte is written once."""
        data = tensor.contiguous().flatten().view(torch.uint8).numpy()
        self._out.seek(len(self._head) + self._starts[name] + offset)
        self._out.write(data.data)
        self._missing -= data.nbytes
        return offset + data.nbytes


def sha256(file: Path) -> str:
    """Hex digest of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
