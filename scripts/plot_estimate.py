"""Write the modelled speed of a profile, of the published baseline's solve, and published measurements beside them.

python scripts/plot_estimate.py --model config.json --profile profiles/128k.yaml --out profile_artifacts/estimate
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import typer

matplotlib.use("Agg")

from matplotlib import pyplot

from qwen36_neuron.config import ModelConfig
from qwen36_neuron.graph.profile import Profile
from qwen36_neuron.planning.bars import bars_json
from qwen36_neuron.planning.delta_rule import DeltaRuleCost, Prefill, RowByRow
from qwen36_neuron.planning.estimate import Estimate, single_sequence
from qwen36_neuron.planning.report import CAVEAT, estimate_json
from qwen36_neuron.provenance import provenance

PUBLISHED: dict[str, dict[str, list[float]]] = {
    "row-by-row solve": {"prompts": [512, 65536], "tokens_per_s": [404, 602]},
    "decode, fp8-mlp": {"tokens_per_s": [26.3, 26.6]},
    "prefill in bf16, other kernels": {"prompts": [1024, 4096, 8192, 16384], "tokens_per_s": [3606, 3175, 2965, 2445]},
}
"""Measured by others on a trn2.3xlarge, 27B, TP=4, LNC=2. The first three of the last are numerically unsafe."""

PROFILE, SINGLE = "the profile", "one sequence"
FUSED, FUSED_FP8 = "the profile with fused kernels", "the same, all FP8"
BASELINE = "published row-by-row solve"


def main(
    model: Annotated[Path, typer.Option(help="Checkpoint folder, or its config.json.")],
    profile: Annotated[Path, typer.Option(help="YAML file.")],
    out: Annotated[Path, typer.Option(help="Folder for estimate.json and estimate.png.")],
) -> None:
    """Estimate the profile and the baseline, and plot both beside what was published."""
    config, sizes = ModelConfig.from_pretrained(model), Profile.load(profile)
    fused, full = (
        replace(sizes, options=replace(sizes.options, kernels="fused", weights=weights))
        for weights in ("fp8-mlp", "fp8")
    )
    sides: dict[str, tuple[Profile, DeltaRuleCost]] = {
        PROFILE: (sizes, Prefill()),
        SINGLE: (single_sequence(sizes), Prefill()),
        FUSED: (fused, Prefill()),
        FUSED_FP8: (full, Prefill()),
        BASELINE: (single_sequence(sizes), RowByRow()),
    }
    estimates = {name: estimate_json(Estimate(side, config, kernel)) for name, (side, kernel) in sides.items()}
    result = {
        "estimates": estimates,
        "bars": bars_json(Estimate(fused, config, Prefill())),
        "published": PUBLISHED,
        "caveat": CAVEAT,
        "provenance": provenance("modelled").as_dict(),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "estimate.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    plot(estimates, out / "estimate.png")


def plot(estimates: dict[str, Any], file: Path) -> None:
    """Prefill by prompt length, and time a token by context."""
    figure, (prefill, decode) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for name in (PROFILE, FUSED, BASELINE):
        entries = estimates[name]["prefill"]
        rates = [entry["tokens_per_s"] for entry in entries]
        prefill.plot([entry["prompt"] for entry in entries], rates, "o-", label=f"{name}, modelled")
    for name in (PROFILE, SINGLE, FUSED, FUSED_FP8):
        rows = max(entry["batch"] for entry in estimates[name]["decode"])
        entries = [entry for entry in estimates[name]["decode"] if entry["batch"] == rows]
        times = [1e3 * entry["token_s"] for entry in entries]
        decode.plot([entry["context"] for entry in entries], times, "o-", label=f"{name}, batch {rows}, modelled")
    solve, other = PUBLISHED["row-by-row solve"], PUBLISHED["prefill in bf16, other kernels"]
    low, high = solve["tokens_per_s"]
    prefill.fill_between(solve["prompts"], low, high, alpha=0.3, label="row-by-row solve, published")
    prefill.plot(other["prompts"], other["tokens_per_s"], "kx", label="other kernels, published")
    decode.axhline(1e3 / PUBLISHED["decode, fp8-mlp"]["tokens_per_s"][0], ls="--", label="batch 1, fp8-mlp, published")
    prefill.set(xscale="log", yscale="log", xlabel="prompt, tokens", ylabel="prefill, tokens/s")
    decode.set(xscale="log", yscale="log", xlabel="tokens held by a row", ylabel="decode step, ms")
    for axes in (prefill, decode):
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=7)
    figure.suptitle("Qwen3.6-27B on a trn2.3xlarge, TP=4: modelled, not measured")
    figure.savefig(file, dpi=130)


if __name__ == "__main__":
    typer.run(main)
