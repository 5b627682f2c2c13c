"""Whether an artifact is the one that a server is started for: every difference by name, before anything is loaded.

`python -m qwen36_neuron.artifact.audit --artifact DIR --model DIR ...` prints the number of KV blocks that the artifact
has, which the engine must be started with, and ends with 0; or it names every difference and ends with 2.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..checkpoint.kv_scales import load_kv_scales
from ..config import ModelConfig
from ..devices import FP8_KV, NeuronKernels
from ..errors import ConfigError
from .manifest import (
    changed_files,
    config_digest,
    packages,
    read_manifest,
    source_digests,
    weights_digest,
    weights_format,
)


@dataclass(frozen=True, slots=True)
class LaunchArguments:
    """What a server is started with. None where the artifact decides; `kv_scales` are then those beside the graphs.

    0 `sampling_candidates`, 0 `max_drafts` and 0 `max_proposals` suit every artifact.
    """

    model: Path
    max_model_len: int
    max_num_seqs: int
    num_slots: int
    tp_degree: int
    dtype: str
    num_blocks: int | None = None
    kernels: NeuronKernels | None = None
    sampling_candidates: int | None = None
    max_drafts: int = 0
    max_proposals: int = 0
    kv_cache_dtype: str = "auto"
    kv_scales: Path | None = None


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A value that the artifact was made with and the start contradicts."""

    field: str
    compiled: object
    asked: object
    remedy: str

    def __str__(self) -> str:
        return f"{self.field}: compiled for {self.compiled!r}, started with {self.asked!r}. {self.remedy}."


def audit(
    manifest: dict[str, Any], arguments: LaunchArguments, artifact: Path, checksums: bool = False
) -> list[Mismatch]:
    """Every difference between an artifact and what it is to be used for.

    Args:
        checksums: read the files of the artifact, and not only their sizes.
    Raises:
        ConfigError: the model cannot be read.
    """
    return [
        *_sizes(manifest["options"], arguments),
        *_drafts(manifest, arguments),
        *_keys_and_values(manifest, arguments),
        *_model(manifest, arguments.model),
        *_software(manifest),
        *(
            Mismatch("file", name, "missing or changed", "Copy the artifact again, or compile again")
            for name in changed_files(artifact, manifest["files"], checksums)
        ),
    ]


def _sizes(options: dict[str, Any], arguments: LaunchArguments) -> list[Mismatch]:
    found = []
    for flag, compiled, asked in (
        ("--max-num-seqs", options["num_lanes"], arguments.max_num_seqs),
        ("--slots", options["num_slots"], arguments.num_slots),
        ("--tp-degree", options["tp_degree"], arguments.tp_degree),
        ("--dtype", options["dtype"], arguments.dtype),
        ("--num-gpu-blocks-override", options["num_blocks"], arguments.num_blocks),
    ):
        if asked is not None and compiled != asked:
            found.append(Mismatch(flag, compiled, asked, f"Start with {flag} {compiled}, or compile again"))
    kernels, asked = options["kernels"], arguments.kernels
    if asked is not None and kernels != asked:
        said = f"with --kernels {kernels}" if isinstance(kernels, str) else "without --kernels, which says all stages'"
        found.append(Mismatch("--kernels", kernels, asked, f"Start {said}, or compile again"))
    drawn, asked = options["sampling_candidates"], arguments.sampling_candidates
    if asked and asked != drawn:
        flag, on_host = "--sampling-candidates", ", or with 0 to sample on the host" if drawn else ""
        found.append(Mismatch(flag, drawn, asked, f"Start with {flag} {drawn}{on_host}, or compile again"))
    longest = options["max_model_len"]
    if arguments.max_model_len > longest:
        remedy = f"Start with --max-model-len {longest} or less, or compile again"
        found.append(Mismatch("--max-model-len", longest, arguments.max_model_len, remedy))
    return found


def _drafts(manifest: dict[str, Any], arguments: LaunchArguments) -> list[Mismatch]:
    """Drafts that no graph can verify, or that none can make, with the command that compiles for them."""
    options = manifest["options"]
    compiled = {field: options.get(field, 0) for field in ("max_drafts", "max_proposals")}
    needed = {field: max(has, getattr(arguments, field)) for field, has in compiled.items()}
    kernels = options["kernels"]
    command = " ".join(
        [
            f"qwen36 compile --model {arguments.model} --profile {manifest['profile']} --weights {manifest['weights']}",
            *([f"--kernels {kernels}"] if isinstance(kernels, str) else []),  # a choice a stage is the profile's
            f"--max-drafts {needed['max_drafts']} --max-proposals {needed['max_proposals']} --out DIR",
        ]
    )
    fewer = {"max_drafts": "drafts", "max_proposals": "drafts of the draft layer"}
    return [
        Mismatch(
            f"--{field.replace('_', '-')}",
            has,
            getattr(arguments, field),
            f"Start with {has or 'no'} {fewer[field]}, or compile again: {command}",
        )
        for field, has in compiled.items()
        if getattr(arguments, field) > has
    ]


def _keys_and_values(manifest: dict[str, Any], arguments: LaunchArguments) -> list[Mismatch]:
    """Another number format, or scales of FP8 that are not those beside the graphs."""
    compiled = manifest["options"].get("kv_cache_dtype", "auto")
    if (compiled in FP8_KV) != (arguments.kv_cache_dtype in FP8_KV):
        remedy = f"Start with --kv-cache-dtype {compiled}, or compile again with --kv-cache-dtype"
        return [Mismatch("--kv-cache-dtype", compiled, arguments.kv_cache_dtype, remedy)]
    if arguments.kv_scales is None or compiled not in FP8_KV:
        return []
    model, drafts = ModelConfig.from_pretrained(arguments.model), manifest["options"].get("max_proposals", 0) > 0
    found = load_kv_scales(arguments.model, model, drafts, arguments.kv_scales).digest()
    if found == manifest["kv_scales"]:
        return []
    remedy = "Leave --kv-scales out, which takes those beside the graphs, or compile again with these"
    return [Mismatch("--kv-scales", manifest["kv_scales"], found, remedy)]


def _model(manifest: dict[str, Any], model: Path) -> list[Mismatch]:
    remedy = "Start with the checkpoint that was compiled, or compile again"
    return [
        Mismatch(field, compiled, found, remedy)
        for field, compiled, found in (
            ("model configuration", manifest["model"]["config"], config_digest(ModelConfig.from_pretrained(model))),
            ("weights", manifest["model"]["weights"], weights_digest(model)),
            ("number format", manifest["weights"], weights_format(model)),
        )
        if compiled != found
    ]


def _software(manifest: dict[str, Any]) -> list[Mismatch]:
    now, then, remedy = packages(), manifest["packages"], "Install that version, or compile again"
    absent = "not installed"
    found = [
        Mismatch(name, then.get(name, absent), now.get(name, absent), remedy)
        for name in sorted(set(now) | set(then))
        if now.get(name) != then.get(name)
    ]
    sources = source_digests()
    return found + [
        Mismatch(f"sources of {name}", digest, sources.get(name), "Use the release that compiled it, or compile again")
        for name, digest in manifest["sources"].items()
        if sources.get(name) != digest
    ]


def main(
    artifact: Annotated[Path, typer.Option(help="Folder of compiled graphs.")],
    model: Annotated[Path, typer.Option(help="Checkpoint folder.")],
    max_model_len: Annotated[int, typer.Option(help="Tokens of the longest sequence.")],
    max_num_seqs: Annotated[int, typer.Option(help="Sequences that run at once.")],
    slots: Annotated[int, typer.Option(help="State checkpoints.")],
    tp_degree: Annotated[int, typer.Option(help="Tensor-parallel ranks.")],
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")],
    num_blocks: Annotated[int | None, typer.Option(help="KV blocks, if they are chosen already.")] = None,
    kernels: Annotated[NeuronKernels | None, typer.Option(help="What must have been compiled.")] = None,
    sampling_candidates: Annotated[int | None, typer.Option(help="Most likely tokens that a graph draws from.")] = None,
    max_drafts: Annotated[int, typer.Option(help="Drafts of a row that are to be verified.")] = 0,
    max_proposals: Annotated[int, typer.Option(help="Drafts that the draft layer is to make of a row.")] = 0,
    kv_cache_dtype: Annotated[str, typer.Option(help="Number format of keys and values.")] = "auto",
    kv_scales: Annotated[Path | None, typer.Option(help="File of their scales, if not that of the artifact.")] = None,
    checksums: Annotated[bool, typer.Option(help="Read the artifact's files, and not only their sizes.")] = False,
) -> None:
    """Name every difference between an artifact and a start; print its number of KV blocks if there is none."""
    sizes = max_model_len, max_num_seqs, slots, tp_degree, dtype, num_blocks
    drafts = max_drafts, max_proposals
    arguments = LaunchArguments(model, *sizes, kernels, sampling_candidates, *drafts, kv_cache_dtype, kv_scales)
    try:
        manifest = read_manifest(artifact)
        mismatches = audit(manifest, arguments, artifact, checksums)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    for mismatch in mismatches:
        print(f"artifact {artifact}: {mismatch}", file=sys.stderr)
    if mismatches:
        raise typer.Exit(2)
    print(manifest["options"]["num_blocks"])


if __name__ == "__main__":
    typer.run(main)
