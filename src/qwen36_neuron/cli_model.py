"""`qwen36` commands that make checkpoints, plan, estimate and generate."""

from __future__ import annotations

import json
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from .checkpoint.weight_format import WeightFormat
from .config import BLOCK_SIZE, ModelConfig
from .devices import CpuKernels
from .planning.plan import GIB, Plan, PlanRequest


class Preset(StrEnum):
    """Shapes of made checkpoints."""

    TINY = "tiny"
    DEMO = "demo"


class KVType(StrEnum):
    """Numbers of the KV cache."""

    BF16 = "bf16"
    FP32 = "fp32"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self is KVType.BF16 else torch.float32


def make_checkpoint(
    folder: Annotated[Path, typer.Argument(help="New folder to write.")],
    preset: Annotated[Preset, typer.Option(help="Its shape.")] = Preset.DEMO,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    mtp: Annotated[bool, typer.Option(help="Add the multi-token-prediction layer.")] = False,
) -> None:
    """Write a small checkpoint with random weights in Hugging Face layout."""
    from .checkpoint.maker import PRESETS
    from .checkpoint.maker import make_checkpoint as make  # brings transformers, slow to import

    make(folder, replace(PRESETS[preset.value], seed=seed, num_mtp_layers=int(mtp)))
    parameters = ModelConfig.from_pretrained(folder).num_parameters(include_mtp=True)
    print(f"{folder}: {parameters / 1e6:.1f} M parameters")


def plan(
    model: Annotated[Path, typer.Option(help="Checkpoint folder, or its config.json.")],
    max_model_len: Annotated[int, typer.Option(help="Tokens of the longest sequence.")],
    max_num_seqs: Annotated[int, typer.Option(help="Sequences that run at once.")] = 1,
    slots: Annotated[int, typer.Option(help="State checkpoints for prefix reuse.")] = 0,
    tp: Annotated[int, typer.Option(help="Tensor-parallel ranks, one a logical core.")] = 4,
    weights: Annotated[WeightFormat, typer.Option(help="Number format of the matrices.")] = WeightFormat.BF16,
    kv_dtype: Annotated[KVType, typer.Option(help="Number format of the KV cache.")] = KVType.BF16,
    num_blocks: Annotated[
        int | None, typer.Option(help="KV blocks, when not enough for every sequence at full length.")
    ] = None,
    mtp: Annotated[bool, typer.Option(help="Hold the multi-token-prediction layer.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, sizes in bytes.")] = False,
) -> None:
    """Print what a configuration costs in device memory on a trn2.3xlarge, and refuse what does not fit."""
    request = PlanRequest(max_model_len, max_num_seqs, slots, tp, weights, kv_dtype.dtype, num_blocks, mtp)
    result = Plan(ModelConfig.from_pretrained(model), request)
    if as_json:
        print(json.dumps(plan_json(result), indent=2))
    else:
        console = Console()
        console.print(plan_table(result))
        limits = ", ".join(f"{field} {'none' if value is None else value}" for field, value in result.limits.items())
        console.print(f"Changing one limit alone, the largest that fits: {limits}.")
        console.print(f"All figures are modelled. Reserve: {result.machine.reserve_source}.", style="dim")
    result.check()


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


def generate_text(
    prompt: Annotated[str, typer.Option(help="What the user says; with --raw, the text to continue.")],
    model: Annotated[Path, typer.Option(help="Checkpoint folder.")] = Path("checkpoints/demo"),
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Probability mass that is sampled from.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    thinking: Annotated[bool, typer.Option(help="Let the model think before it answers.")] = True,
    raw: Annotated[bool, typer.Option(help="No chat template.")] = False,
    max_model_len: Annotated[int, typer.Option(help="Tokens of prompt and answer together at most.")] = 4096,
    kernels: Annotated[
        CpuKernels | None,
        typer.Option(
            help="Fused operations, plain torch, or the NKI kernels in their interpreter: slow, for proof. "
            "[default: fused where Numba is installed, else torch]"
        ),
    ] = None,
) -> None:
    """Generate one answer offline, without a server."""
    from transformers import AutoTokenizer  # slow to import, as is the runtime: only this command needs them

    from .runtime import RuntimeConfig, open_runtime
    from .runtime.generate import Generation, generate

    config = ModelConfig.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    if raw:
        ids = tokenizer(prompt)["input_ids"]
    else:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            enable_thinking=thinking,
            return_dict=False,
        )
    how = Generation(max_tokens, config.eos_token_ids, temperature, top_p, seed)
    blocks = -(-max_model_len // BLOCK_SIZE) + 1
    runtime = open_runtime(
        RuntimeConfig(model, max_model_len=max_model_len, num_blocks=blocks, num_lanes=1, kernels=kernels)
    )
    shown, tokens = "", []
    for token in generate(runtime, ids, how):
        tokens.append(token)
        text = tokenizer.decode(tokens)
        if not text.endswith("\ufffd"):  # the first bytes of a character whose rest is in the next token
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(tokenizer.decode(tokens)[len(shown) :])


def estimate(
    model: Annotated[Path, typer.Option(help="Checkpoint folder, or its config.json.")],
    profile: Annotated[Path, typer.Option(help="YAML file, such as profiles/128k.yaml.")],
    baseline: Annotated[
        bool, typer.Option("--baseline", help="One sequence, and the published row-by-row solve: what is measured.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print how fast a profile would run on a trn2.3xlarge, and what binds each phase. Everything is modelled."""
    from .graph.profile import Profile
    from .planning import report
    from .planning.delta_rule import DeltaRuleCost, Prefill, RowByRow
    from .planning.estimate import Estimate, single_sequence

    sizes = Profile.load(profile)
    kernel: DeltaRuleCost = RowByRow() if baseline else Prefill()
    modelled = Estimate(single_sequence(sizes) if baseline else sizes, ModelConfig.from_pretrained(model), kernel)
    result = report.estimate_json(modelled)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    console = Console()
    console.print(report.prefill_table(result))
    console.print(report.decode_table(result))
    console.print(f"All figures are modelled. {report.CAVEAT}", style="dim")
