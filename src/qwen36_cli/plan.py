"""`qwen36 plan`: what a configuration costs in device memory."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from qwen36_neuron.checkpoint.locate import locate
from qwen36_neuron.checkpoint.weight_format import WeightFormat
from qwen36_neuron.devices import FP8_KV
from qwen36_neuron.planning.contexts import NUMBERS, contexts
from qwen36_neuron.planning.plan import GIB, Plan, PlanRequest

from .overrides import OVERRIDES, described, long_allowed


class KVType(StrEnum):
    """Numbers of the KV cache, by vLLM's names."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FP8 = "fp8"
    FP8_E4M3 = "fp8_e4m3"

    @property
    def dtype(self) -> torch.dtype:
        """Of the convolution windows too, which are bfloat16 beside FP8."""
        return torch.float32 if self is KVType.FLOAT32 else torch.bfloat16


def plan(
    model: Annotated[str, typer.Option(help="Checkpoint folder or its config.json, or a Hugging Face id.")],
    max_model_len: Annotated[int, typer.Option(help="Tokens of the longest sequence.")],
    max_num_seqs: Annotated[int, typer.Option(help="Sequences that run at once.")] = 1,
    slots: Annotated[int, typer.Option("--slots", "--num-slots", help="State checkpoints for prefix reuse.")] = 0,
    tp: Annotated[
        int, typer.Option("--tensor-parallel-size", "-tp", help="Tensor-parallel ranks, one a logical core.")
    ] = 4,
    weights: Annotated[WeightFormat, typer.Option(help="Number format of the matrices.")] = WeightFormat.BF16,
    kv_dtype: Annotated[
        KVType, typer.Option("--kv-cache-dtype", help="Number format of the KV cache.")
    ] = KVType.BFLOAT16,
    num_blocks: Annotated[
        int | None,
        typer.Option("--num-gpu-blocks-override", help="KV blocks, when not enough for every sequence at full length."),
    ] = None,
    mtp: Annotated[bool, typer.Option(help="Hold the multi-token-prediction layer.")] = False,
    max_drafts: Annotated[int, typer.Option(help="Drafts that a row may have verified.")] = 0,
    hf_overrides: Annotated[str | None, typer.Option(help=OVERRIDES)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, sizes in bytes.")] = False,
) -> None:
    """Print what a configuration costs in device memory on a trn2.3xlarge, and refuse what does not fit."""
    sizes = max_model_len, max_num_seqs, slots, tp
    request = PlanRequest(
        *sizes, weights, kv_dtype.dtype, num_blocks, mtp, max_drafts, kv_dtype in FP8_KV, long_allowed()
    )
    result = Plan(described(locate(model, sizes_only=True), hf_overrides), request)
    if as_json:
        print(json.dumps(plan_json(result) | {"contexts": [each.as_dict() for each in contexts(result)]}, indent=2))
    else:
        console = Console(width=max(140, Console().width))
        console.print(plan_table(result))
        console.print(context_table(result))
        limits = ", ".join(f"{field} {'none' if value is None else value}" for field, value in result.limits.items())
        console.print(f"Changing one limit alone, the largest that fits: {limits}.")
        console.print(f"All figures are modelled. Reserve: {result.machine.reserve_source}.", style="dim")
    result.check()


def context_table(result: Plan) -> Table:
    """Keys and values of one sequence by length, and what fits with weights of each format."""
    found, config, tp = contexts(result), result.config, result.request.tp
    replicas = config.rank(tp).kv_replicas
    heads = f"{len(config.attention_layers)} layers x {config.num_kv_heads} heads x {config.head_dim} x 2"
    token = ", ".join(f"{name} {config.kv_bytes_per_token(size) / 1024:g} KiB" for name, size in NUMBERS.items())
    table = Table(title=f"One sequence, GiB on all {tp} ranks. A token: {heads}: {token}")
    table.add_column("tokens", justify="right")
    for name in NUMBERS:
        table.add_column(f"KV, {name}", justify="right")
    if replicas > 1:
        for name in NUMBERS:
            table.add_column(f"held {replicas} times, {name}", justify="right")
    for weights, name in found[0].used_bytes:
        table.add_column(f"used: {weights}, {name} KV", justify="right")
    for each in found:
        columns = [each.kv_bytes[name] for name in NUMBERS]
        columns += [each.held_bytes[name] for name in NUMBERS] if replicas > 1 else []
        used = [f"{size / GIB:.1f}{'' if each.fits[pair] else ' !'}" for pair, size in each.used_bytes.items()]
        table.add_row(
            f"{each.tokens}{' *' if each.stretched else ''}", *(f"{size / GIB:.2f}" for size in columns), *used
        )
    held = f" {config.num_kv_heads} KV heads over {tp} ranks: {replicas} ranks hold each." if replicas > 1 else ""
    table.caption = f"! does not fit; * beyond the {config.max_position_embeddings} positions of training: YaRN.{held}"
    return table


def plan_table(result: Plan) -> Table:
    """The plan as a table in GiB."""
    request, machine = result.request, result.machine
    table = Table(
        title=f"{machine.name}, TP={request.tp}, {request.weights.value} weights: "
        f"{request.max_num_seqs} x {request.max_model_len} tokens, {request.slots} slots"
    )
    table.add_column("")
    table.add_column("GiB a rank", justify="right")
    table.add_column("GiB in all", justify="right")
    table.add_column("")
    for line in result.lines:
        table.add_row(line.name, *_gib(line.rank_bytes, request.tp), line.detail)
    table.add_section()
    table.add_row("used", *_gib(result.used_bytes, request.tp), f"of {machine.core_bytes / GIB:.0f} GiB a rank")
    table.add_row("free", *_gib(result.free_bytes, request.tp), "fits" if result.fits else "DOES NOT FIT")
    return table


def plan_json(result: Plan) -> dict[str, object]:
    """The plan for programs; sizes in bytes, for one rank."""
    request, machine = result.request, result.machine
    return {
        "machine": machine.name,
        "modelled": True,
        "tp": request.tp,
        "weights": request.weights.value,
        "kv_cache_dtype": "fp8_e4m3" if request.fp8_kv else str(request.kv_dtype).removeprefix("torch."),
        "max_model_len": request.max_model_len,
        "max_num_seqs": request.max_num_seqs,
        "slots": request.slots,
        "num_blocks": request.blocks,
        "lines": [{"name": line.name, "rank_bytes": line.rank_bytes, "detail": line.detail} for line in result.lines],
        "used_rank_bytes": result.used_bytes,
        "free_rank_bytes": result.free_bytes,
        "rank_bytes": machine.core_bytes,
        "reserve_source": machine.reserve_source,
        "fits": result.fits,
        "largest_that_fits": result.limits,
    }


def _gib(rank_bytes: int, tp: int) -> tuple[str, str]:
    return f"{rank_bytes / GIB:.2f}", f"{rank_bytes * tp / GIB:.2f}"
