"""What a compiled artifact says of itself: from what it was made, for what sizes, and the bytes that it consists of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..checkpoint.conversion import FORMATS, source_files
from ..checkpoint.formats import format_of
from ..checkpoint.kv_scales import FILE as KV_SCALES
from ..checkpoint.kv_scales import load_kv_scales
from ..checkpoint.quantiser import MANIFEST as FP8_MANIFEST
from ..checkpoint.quantiser import read_manifest as read_fp8_manifest
from ..checkpoint.stream import sha256
from ..checkpoint.weight_format import WeightFormat
from ..config import ModelConfig
from ..errors import ConfigError
from ..provenance import provenance
from .check import Checked

MANIFEST = "manifest.json"
FORMAT = 2

PACKAGES = (
    "neuronx-cc",
    "torch-neuronx",
    "libneuronxla",
    "neuronx-distributed",
    "neuronx-distributed-inference",
    "nki",
    "torch",
)
"""What a compiled graph depends on."""

SOURCES = {"qwen36_neuron": ("cache", "graph", "model", "ops", "nxdi"), "nki_kernels": (".",)}
"""Folders of ours, by package, that decide what the graphs are; a folder is read without those below it."""


def write_manifest(checked: Checked, model: Path, artifact: Path) -> Path:
    """Describe the artifact in `artifact`, compiled from the checkpoint in `model`; gives the file written."""
    profile, plan = checked.profile, checked.plan
    content = {
        "format": FORMAT,
        "profile": profile.name,
        "weights": profile.weights,
        "options": profile.options.to_json(),
        "model": {"config": config_digest(checked.model), "weights": weights_digest(model)},
        "kv_scales": _kv_scales(checked, artifact),
        "graphs": [graph.as_dict() for graph in checked.graphs],
        "memory": {line.name: line.rank_bytes for line in plan.lines},
        "packages": packages(),
        "sources": source_digests(),
        "files": files(artifact),
        "provenance": provenance("measured").as_dict(),
    }
    file = artifact / MANIFEST
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return file


def _kv_scales(checked: Checked, artifact: Path) -> str | None:
    """Digest of the scales of FP8 keys and values beside the graphs; None without such."""
    options = checked.profile.options
    if not options.fp8_kv:
        return None
    return load_kv_scales(artifact, checked.model, options.draft_layer, artifact / KV_SCALES).digest()


def read_manifest(artifact: Path) -> dict[str, Any]:
    """What `write_manifest` wrote.

    Raises:
        ConfigError: there is none, or of another format.
    """
    file = artifact / MANIFEST
    if not file.is_file():
        problem = f"has no {MANIFEST}, so what it was compiled for is not known"
        raise ConfigError("artifact", str(artifact), problem, "Compile it with qwen36 compile")
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError("artifact", str(file), f"is not JSON ({error})", "Compile again") from error
    if content.get("format") != FORMAT:
        problem = f"has format {content.get('format')}, this release reads {FORMAT}"
        raise ConfigError("artifact", str(file), problem, "Compile again, or use the release that wrote it")
    return content


def config_digest(model: ModelConfig) -> str:
    """Of what a model's configuration says of its network; the tokens that end an answer are no part of it."""
    network = {name: value for name, value in asdict(model).items() if name != "eos_token_ids"}
    return _digest([json.dumps(network, sort_keys=True, default=list)])


def weights_digest(model: Path) -> str:
    """Of a converted checkpoint its checksums; of any other the sizes and headers of its files, not the data."""
    if (model / FP8_MANIFEST).is_file():
        noted = read_fp8_manifest(model)["files"]
        return _digest(f"{name} {noted[name]['sha256']}" for name in sorted(noted))
    parts = []
    for file in source_files(model):
        with file.open("rb") as opened:
            header = opened.read(int.from_bytes(opened.read(8), "little"))
        parts.append(f"{file.name} {file.stat().st_size} {hashlib.sha256(header).hexdigest()}")
    return _digest(parts)


def weights_format(model: Path) -> str:
    """The number format of a checkpoint's matrices: a value of `WeightFormat`, the parts that are FP8, or as published.

    Raises:
        ConfigError: it is published in a format that is not served.
    """
    if not (model / FP8_MANIFEST).is_file():
        published = format_of(model)
        return str(WeightFormat.BF16) if published is None else published.name
    parts = frozenset(read_fp8_manifest(model)["parts"])
    return next((str(name) for name, listed in FORMATS.items() if listed == parts), f"fp8 {sorted(parts)}")


def packages() -> dict[str, str]:
    """Installed versions of what graphs depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def source_digests() -> dict[str, str]:
    """A digest a package of the sources that decide what the graphs are, kernels included."""
    digests = {}
    for package, folders in SOURCES.items():
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        root = Path(spec.origin).parent
        listed = sorted(file for folder in folders for file in (root / folder).glob("*.py"))
        digests[package] = _digest(f"{file.relative_to(root)} {sha256(file)}" for file in listed)
    return digests


def files(artifact: Path) -> dict[str, dict[str, Any]]:
    """Checksum and size of every file of an artifact but the manifest."""
    listed = sorted(file for file in artifact.rglob("*") if file.is_file() and file != artifact / MANIFEST)
    return {str(f.relative_to(artifact)): {"sha256": sha256(f), "bytes": f.stat().st_size} for f in listed}


def changed_files(artifact: Path, noted: Mapping[str, Mapping[str, Any]], checksums: bool) -> list[str]:
    """Files that are missing or are not as noted; their contents are read only with `checksums`."""

    def same(file: Path, entry: Mapping[str, Any]) -> bool:
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            return False
        return not checksums or sha256(file) == entry["sha256"]

    return [name for name, entry in noted.items() if not same(artifact / name, entry)]


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
