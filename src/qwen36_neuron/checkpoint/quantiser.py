"""A checkpoint rewritten with FP8 or bf16 matrices, in bounded memory: some rows at a time, a bounded file at a time.

Every file that is done is noted with its checksum in a journal, so an interrupted run goes on behind the last of them.
The index is written last: a folder without it does not load.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..errors import ConfigError
from .conversion import Action, Conversion, Source, Work, scale_name, source_files
from .expert_errors import EXPERTS, expert_errors
from .files import INDEX, CheckpointFiles
from .formats import PLACES
from .fp8 import BLOCK, Error, dequantise, halve, is_neuron_range, quantise_channels
from .sharding import Slice
from .stream import StreamWriter, sha256

MANIFEST = "fp8.json"
JOURNAL = "fp8.progress.jsonl"
FORMAT = 1
CHUNK_VALUES = 1 << 20
"""Matrix elements to convert at once: 4 MiB in fp32, which stays in a processor's cache."""

Done = dict[str, dict[str, Any]]
"""What is known of the finished files, by name."""


@dataclass(frozen=True)
class Quantiser:
    """Carries out a conversion into the folder `target`.

    Attributes:
        max_shard_bytes: size of an output file; one tensor at least goes into each.
    """

    conversion: Conversion
    target: Path
    max_shard_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        if self.target.resolve() == self.conversion.source.resolve():
            raise ConfigError("target", str(self.target), "is the checkpoint itself", "Give another folder")

    @cached_property
    def shards(self) -> dict[str, tuple[Work, ...]]:
        """The work of each output file, by its name."""
        shards: list[list[Work]] = []
        filled = 0
        for work in self.conversion.work:
            if not shards or filled + work.nbytes > self.max_shard_bytes:
                shards.append([])
                filled = 0
            shards[-1].append(work)
            filled += work.nbytes
        count = len(shards)
        return {f"model-{i:05}-of-{count:05}.safetensors": tuple(shard) for i, shard in enumerate(shards, start=1)}

    @property
    def total_bytes(self) -> int:
        """To write."""
        return sum(work.nbytes for work in self.conversion.work)

    @cached_property
    def identity(self) -> str:
        """Digest of what is converted and how: options, and every source file's size and header (not its data)."""
        how = [FORMAT, sorted(self.conversion.parts), self.conversion.layout, self.max_shard_bytes]
        digest = hashlib.sha256(json.dumps(how).encode())
        for file in source_files(self.conversion.source):
            with file.open("rb") as opened:
                size = int.from_bytes(opened.read(8), "little")
                digest.update(f"{file.name} {file.stat().st_size}".encode() + opened.read(size))
        return digest.hexdigest()

    def run(self, progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
        """Write the result, or what is missing of it, and return its manifest.

        Args:
            progress: called with the number of bytes that were written, or found written by an earlier run.
        Raises:
            ConfigError: the target holds something else, or a value of the source cannot be converted.
        """
        self.target.mkdir(parents=True, exist_ok=True)
        done = self._resume()
        with (self.target / JOURNAL).open("w", encoding="utf-8") as journal:
            journal.write(json.dumps({"identity": self.identity}) + "\n")
            for name, shard in self.shards.items():
                if name in done:
                    progress(sum(work.nbytes for work in shard))
                else:
                    done[name] = self._write(name, shard, progress)
                journal.write(json.dumps({"file": name, **done[name]}) + "\n")
                journal.flush()
        manifest = self._finish(done)
        (self.target / JOURNAL).unlink()
        return manifest

    def _resume(self) -> Done:
        """What an earlier run has finished; a file that is not as noted is written again."""
        journal = self.target / JOURNAL
        if not journal.exists():
            if any(self.target.glob("*.safetensors")):
                raise ConfigError("target", str(self.target), "already holds weights", "Give a new folder, or empty it")
            return {}
        # What follows the last line's end was being written when the run was cut.
        lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").split("\n")[:-1]]
        if lines and lines[0]["identity"] != self.identity:
            raise ConfigError(
                "target",
                str(self.target),
                "holds the beginning of another conversion: the source or the options have changed",
                "Give the same source and options as before, or a new folder",
            )
        noted = {entry.pop("file"): entry for entry in lines[1:]}
        return {name: entry for name, entry in noted.items() if self._is_whole(name, entry)}

    def _is_whole(self, name: str, entry: Mapping[str, Any]) -> bool:
        file = self.target / name
        return file.is_file() and sha256(file) == entry["sha256"]

    def _write(self, name: str, shard: Sequence[Work], progress: Callable[[int], None]) -> dict[str, Any]:
        errors: dict[str, Any] = {}
        entries = [entry for work in shard for entry in work.entries]
        with _Reader(self.conversion.source) as reader, StreamWriter(self.target / name, entries) as writer:
            for work in shard:
                error, tensor, at, scale_at = Error(), work.source.name, 0, 0
                for payload, scale in _pieces(reader, work, error):
                    at = writer.write(tensor, at, payload)
                    if scale is not None:
                        scale_at = writer.write(scale_name(tensor), scale_at, scale)
                    progress(payload.nbytes + (0 if scale is None else scale.nbytes))
                if error.values:
                    errors[tensor] = {"action": work.action} | error.as_dict()
        file = self.target / name
        return {"sha256": sha256(file), "bytes": file.stat().st_size, "tensors": errors}

    def _finish(self, done: Done) -> dict[str, Any]:
        source = self.conversion.source
        for file in sorted(source.iterdir()):
            if (
                file.is_file()
                and file.suffix in (".json", ".jinja", ".txt")
                and file.name not in (INDEX, MANIFEST, EXPERTS)
            ):
                shutil.copyfile(file, self.target / file.name)
        _drop_published_format(self.target / "config.json")
        tensors = {name: error for entry in done.values() for name, error in entry["tensors"].items()}
        halved = [error for error in tensors.values() if error["action"] == Action.HALVE]
        report = expert_errors(tensors)
        if report is not None:
            _write_json(self.target / EXPERTS, report)
        manifest = {
            "format": FORMAT,
            "parts": sorted(self.conversion.parts),
            "scales": self.conversion.layout,
            "identity": self.identity,
            "halved_values": sum(error["values"] for error in halved),
            "inexact_halves": sum(error["inexact"] for error in halved),
            "files": {name: {key: done[name][key] for key in ("sha256", "bytes")} for name in self.shards},
            "tensors": tensors,
        }
        _write_json(self.target / MANIFEST, manifest)
        weight_map = {e.name: file for file, shard in self.shards.items() for work in shard for e in work.entries}
        _write_json(self.target / INDEX, {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map})
        return manifest


def verify(folder: Path) -> list[str]:
    """The files of a converted checkpoint whose bytes are not those that its manifest notes.

    Raises:
        ConfigError: the folder is not a converted checkpoint.
    """
    manifest = read_manifest(folder)
    files = {folder / name: entry["sha256"] for name, entry in manifest["files"].items()}
    return [file.name for file, digest in files.items() if not file.is_file() or sha256(file) != digest]


def read_manifest(folder: Path) -> dict[str, Any]:
    """What is noted of a converted checkpoint. Raises ConfigError if it is none."""
    file = folder / MANIFEST
    if not file.is_file():
        raise ConfigError("model", str(folder), f"has no {MANIFEST}", "Give a folder that qwen36 compile has written")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


class _Reader:
    """Rows of a checkpoint's tensors; one file is mapped at a time, so that its pages can go.

    A matrix in INT8 lies in several tensors, each perhaps in another file: all are mapped while there are such.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, ""
        self._opened: Any = None
        self._files: CheckpointFiles | None = None

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        if self._files is not None:
            self._files.__exit__()

    def _close(self) -> None:
        if self._opened is not None:
            self._opened.__exit__(None, None, None)

    def multiplied_out(self, matrix: str, start: int, stop: int) -> torch.Tensor:
        """fp32 rows of a matrix in INT8, by its canonical name."""
        if self._files is None:
            self._files = CheckpointFiles(self.folder)
        return self._files.read(Slice(matrix, 0, start, stop))

    def read(self, tensor: Source, start: int, stop: int) -> torch.Tensor:
        """Rows of a tensor as it is stored."""
        if tensor.file != self.file:
            self._close()
            self._opened, self.file = safe_open(self.folder / tensor.file, framework="pt").__enter__(), tensor.file
        if not tensor.shape:
            whole: torch.Tensor = self._opened.get_tensor(tensor.name)
            return whole
        if tensor.place is not None:
            held: torch.Tensor = tensor.place.rows(self._opened.get_slice(tensor.place.name), start, stop)
            return held
        rows: torch.Tensor = self._opened.get_slice(tensor.name)[start:stop]
        return rows


def _pieces(reader: _Reader, work: Work, error: Error) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """What is written of a tensor, and its scales where it gets them, a run of rows after the other."""
    for start, stop in _runs(work.source.shape):
        if work.coded is not None:
            piece = reader.multiplied_out(work.coded, start, stop)
        else:
            piece = reader.read(work.source, start, stop)
        scale = None
        if work.scale is not None:
            scale = reader.read(work.scale, start // BLOCK, -(-stop // BLOCK)).float()
        try:
            yield _convert(work.action, piece, scale, error)
        except ValueError as problem:
            name = work.source.name
            raise ConfigError(name, work.source.dtype, str(problem), "Download the checkpoint again") from problem


def _convert(
    action: Action, piece: torch.Tensor, scale: torch.Tensor | None, error: Error
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Whole rows of a tensor; `scale` has those of their blocks if the source is FP8."""
    if action is Action.COPY:
        return piece, None
    weight = piece.float() if scale is None else dequantise(piece, scale)
    if action is Action.EXPAND:
        expanded = weight.to(torch.bfloat16)
        error.add(weight, expanded.float())
        return expanded, None
    if action is Action.HALVE and scale is not None:
        payload, scale = halve(piece), 2 * scale
        error.add(weight, dequantise(payload, scale))
    else:
        payload, scale = quantise_channels(weight)
        error.add(weight, dequantise(payload, scale, (1, weight.shape[1])))
    assert is_neuron_range(payload)
    return payload, scale


def _runs(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Rows to convert at once: whole blocks, about CHUNK_VALUES elements."""
    rows, width = (shape[0], torch.Size(shape[1:]).numel()) if shape else (1, 1)
    step = max(1, CHUNK_VALUES // max(1, width) // BLOCK) * BLOCK
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _drop_published_format(config: Path) -> None:
    """Take out `quantization_config`, wherever it is: it describes the source's payload, and engines act on it."""
    content = json.loads(config.read_text(encoding="utf-8"))
    for part in (content, content.get("text_config", {})):
        for place in PLACES:
            part.pop(place, None)
    _write_json(config, content)


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
