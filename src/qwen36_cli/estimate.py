"""`qwen36 estimate`: how fast a profile would run on a trn2.3xlarge."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from qwen36_neuron.checkpoint.locate import locate
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.graph.profile import Profile, shipped
from qwen36_neuron.planning import report
from qwen36_neuron.planning.delta_rule import DeltaRuleCost, Prefill, RowByRow
from qwen36_neuron.planning.estimate import Estimate, single_sequence
from qwen36_neuron.planning.mixture_report import mixture_table

from .interpreter import require_interpreter


def estimate(
    model: Annotated[str, typer.Option(help="Checkpoint folder or its config.json, or a Hugging Face id.")],
    profile: Annotated[str, typer.Option(help=f"{', '.join(shipped())}, or a YAML file.")],
    baseline: Annotated[
        bool, typer.Option("--baseline", help="One sequence, and the published row-by-row solve: what is measured.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print how fast a profile would run on a trn2.3xlarge, and what binds each phase. Everything is modelled."""
    sizes, config = Profile.load(profile), ModelConfig.from_pretrained(locate(model, sizes_only=True))
    if not baseline:
        require_interpreter("estimate")
    kernel: DeltaRuleCost = RowByRow() if baseline else Prefill()
    modelled = Estimate(single_sequence(sizes) if baseline else sizes, config, kernel)
    result = report.estimate_json(modelled)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    console = Console()
    console.print(report.prefill_table(result))
    console.print(report.decode_table(result))
    if "mixture" in result:
        console.print(mixture_table(result))
        console.print(result["mixture"]["assumed"], style="dim")
    if result["speculation"]:
        console.print(report.speculation_table(result))
        console.print(report.ACCEPTANCE, style="dim")
    console.print(f"All figures are modelled. {report.CAVEAT}", style="dim")
