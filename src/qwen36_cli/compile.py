"""`qwen36 compile`: a checkpoint converted to what a device reads, and compiled for a profile."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from qwen36_neuron.artifact.build import compile_artifact, convert, quantiser, require_sdk
from qwen36_neuron.artifact.check import Checked, check
from qwen36_neuron.artifact.graphs import Graph
from qwen36_neuron.checkpoint.expert_errors import EXPERTS, summary
from qwen36_neuron.checkpoint.fp8 import Scales
from qwen36_neuron.checkpoint.kv_scales import load_kv_scales
from qwen36_neuron.checkpoint.locate import locate
from qwen36_neuron.checkpoint.quantiser import Quantiser
from qwen36_neuron.checkpoint.weight_format import WeightFormat
from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.devices import NeuronKernels
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.graph.profile import Profile, shipped
from qwen36_neuron.planning.plan import GIB, MIB
from qwen36_neuron.runtime.environment import FP8_ENVIRONMENT

from .overrides import OVERRIDES, described, long_allowed
from .plan import plan_json, plan_table

T = TypeVar("T")


def compile_model(
    model: Annotated[
        str, typer.Option(help="Checkpoint folder or Hugging Face id; for --dry-run its config.json is enough.")
    ],
    profile: Annotated[str | None, typer.Option(help=f"{', '.join(shipped())}, or a YAML file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to.")] = None,
    weights: Annotated[
        WeightFormat | None,
        typer.Option(
            help="Instead of the profile's: fp8-mlp for MLPs alone, fp8 for every projection and the head, bf16."
        ),
    ] = None,
    scales: Annotated[
        Scales | None,
        typer.Option(help="Of FP8 matrices. Published 128x128 blocks are kept as they are unless this says channel."),
    ] = None,
    kernels: Annotated[
        NeuronKernels | None,
        typer.Option(
            help="Instead of the profile's: torch for plain graphs, nki for graphs that call an NKI kernel an "
            "operation, fused where decode steps' feed-forward blocks and DeltaNet projections are one each."
        ),
    ] = None,
    kv_cache_dtype: Annotated[
        str | None,
        typer.Option(help="Instead of the profile's: fp8 for keys and values in FP8, auto for the profile's dtype."),
    ] = None,
    kv_scales: Annotated[
        Path | None,
        typer.Option(help="Scales of FP8 keys and values, as calibrate-kv writes them. [default: the checkpoint's]"),
    ] = None,
    max_drafts: Annotated[
        int | None,
        typer.Option(help="Instead of the profile's: drafts that a row may have verified, 0 for none."),
    ] = None,
    max_proposals: Annotated[
        int | None,
        typer.Option(
            help="Instead of the profile's: drafts that the model's own draft layer makes at once, 0 to leave it out."
        ),
    ] = None,
    hf_overrides: Annotated[str | None, typer.Option(help=f"With --dry-run: {OVERRIDES}")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, print the plan, write nothing.")] = False,
    weights_only: Annotated[bool, typer.Option("--weights-only", help="Convert, and compile nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
) -> None:
    """Convert a checkpoint to what a device reads, and compile it for a profile.

    Published INT8 and FP8 checkpoints are converted from the numbers that they stand for; `fp8.json` has what it costs.
    Writes `checkpoint/` (the model to serve) and `artifact/` (its graphs and their manifest) below --out. Everything is
    checked before anything is written. A conversion that was interrupted goes on where it stopped.
    """
    if as_json and not dry_run:
        raise ConfigError("json", True, "prints what --dry-run finds", "Give --dry-run with it")
    if hf_overrides and not dry_run:
        remedy = "Write it into the checkpoint's config.json, which is what is compiled and served"
        raise ConfigError("hf-overrides", hf_overrides, "is for --dry-run", remedy)
    if weights_only:
        if dry_run:
            raise ConfigError("weights-only", True, "converts, and --dry-run writes nothing", "Give one of the two")
        chosen = weights or Profile.load(required("profile", profile)).weights
        print(f"checkpoint: {converted(locate(model), required('out', out), chosen, scales)}")
        return
    drafts = max_drafts, max_proposals
    chosen_profile = changed(Profile.load(required("profile", profile)), weights, kernels, *drafts, kv_cache_dtype)
    folder = locate(model, sizes_only=dry_run)
    model_config = described(folder, hf_overrides)
    checked = check(chosen_profile, model_config, long_allowed())
    if dry_run and as_json:
        print(json.dumps(as_dict(checked), indent=2))
    else:
        show(Console(width=max(140, Console().width)), checked)  # a column an input
    checked.require()
    fp8_kv = checked.profile.options.fp8_kv
    if kv_scales is not None and not fp8_kv:
        problem = f"is for FP8 keys and values, and kv_cache_dtype={checked.profile.options.kv_cache_dtype}"
        raise ConfigError("kv-scales", str(kv_scales), problem, "Give --kv-cache-dtype fp8 with it")
    if not dry_run:
        scales_of_kv = None
        if fp8_kv:
            scales_of_kv = load_kv_scales(folder, checked.model, checked.profile.options.draft_layer, kv_scales)
        require_sdk(checked.profile.options.kernels)  # before hours of work, not after
        target = required("out", out)
        checkpoint = converted(folder, target, checked.profile.weights, scales)
        os.environ.update(FP8_ENVIRONMENT)
        manifest = compile_artifact(checked, checkpoint, target / "artifact", scales_of_kv)
        also = " --kv-cache-dtype fp8" if fp8_kv else ""
        print(f"serve with --device neuron --model {checkpoint} --artifact {manifest.parent}{also}")


def required(option: str, value: T | None) -> T:
    """The value of an option that this call needs."""
    if value is None:
        raise ConfigError(option, None, "is missing", f"Give --{option}")
    return value


def changed(
    profile: Profile,
    weights: WeightFormat | None,
    kernels: NeuronKernels | None,
    max_drafts: int | None,
    max_proposals: int | None,
    kv_cache_dtype: str | None = None,
) -> Profile:
    """The profile in other number formats, with other kernels or for other drafts, if they are given.

    What the draft layer makes can be verified, unless it is said how many drafts can.
    """
    options = profile.options
    if weights is not None:
        options = replace(options, weights=weights.value)
    if kernels is not None:
        options = replace(options, kernels=kernels)
    if kv_cache_dtype is not None:
        options = replace(options, kv_cache_dtype=kv_cache_dtype)
    if max_drafts is None and max_proposals is not None:
        max_drafts = max(options.max_drafts, max_proposals)
    if max_drafts is not None:
        proposals = options.max_proposals if max_proposals is None else max_proposals
        options = replace(options, max_drafts=max_drafts, max_proposals=proposals)
    return replace(profile, options=options)


def converted(model: Path, out: Path, weights: WeightFormat, scales: Scales | None) -> Path:
    """The checkpoint in `weights`: the one given, or its conversion in `out`."""
    work = quantiser(model, out / "checkpoint", weights, scales)
    if work is None:
        return model
    made = run(work)
    report = made / EXPERTS
    if report.is_file():
        print(f"{summary(json.loads(report.read_text(encoding='utf-8')))}\n{report} has every expert.")
    return made


def run(work: Quantiser) -> Path:
    """Convert under a progress bar."""
    columns = ("converting", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=work.total_bytes)
        return convert(work, lambda written: progress.advance(task, written))


def show(console: Console, checked: Checked) -> None:
    """Print the plan: memory, graphs, compiler arguments, findings."""
    profile, options, plan = checked.profile, checked.profile.options, checked.plan
    console.print(f"Profile {profile.name}: {profile.description}.")
    console.print(plan_table(plan))
    tokens = (options.num_blocks - 1) * BLOCK_SIZE
    console.print(
        f"KV pool: {tokens} tokens: {options.num_lanes} sequences of {tokens // options.num_lanes}, or "
        f"{tokens // options.positions} of {options.max_model_len}."
    )
    used, whole = plan.used_bytes * options.tp_degree, plan.machine.core_bytes * plan.machine.cores
    console.print(f"All ranks: {used / GIB:.1f} of {whole / GIB:.0f} GiB.")
    for tag in dict.fromkeys(graph.tag for graph in checked.graphs):
        console.print(graph_table(tag, [graph for graph in checked.graphs if graph.tag == tag]))
    for tag in dict.fromkeys(graph.tag for graph in checked.graphs):
        for line in sorted({graph.arguments for graph in checked.graphs if graph.tag == tag}):
            console.print(f"{tag}: neuronx-cc {line}", soft_wrap=True, markup=False, highlight=False)
    for finding in checked.findings:
        console.print(f"{'FAILS' if finding.fatal else 'note'}: {finding}", markup=False)
    console.print(f"All sizes are modelled. Reserve: {plan.machine.reserve_source}.", style="dim")


def graph_table(tag: str, graphs: list[Graph]) -> Table:
    """The graphs of a tag, a column an input: int32, but for the sampling parameters, which are fp32."""
    table = Table(title=f"{tag}: {len(graphs)} graphs, {graphs[0].states} states in and out")
    for column in ("graph", *graphs[0].inputs, "scratch, MiB a rank"):
        table.add_column(column)
    for graph in graphs:
        shapes = ["x".join(map(str, shape)) for shape in graph.inputs.values()]
        table.add_row(graph.name, *shapes, f"{graph.scratch_bytes / MIB:.0f}")
    return table


def as_dict(checked: Checked) -> dict[str, object]:
    """The plan for programs."""
    return {
        "profile": checked.profile.name,
        "options": checked.profile.options.to_json(),
        "memory": plan_json(checked.plan),
        "graphs": [graph.as_dict() for graph in checked.graphs],
        "findings": [{"fatal": finding.fatal, "text": str(finding)} for finding in checked.findings],
    }
