"""Price the kernels of the estimates that are shipped, and keep the prices with the package: minutes, once a change.

python scripts/record_prices.py --model config.json
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from qwen36_neuron.config import ModelConfig
from qwen36_neuron.graph.profile import Profile
from qwen36_neuron.planning import price_record
from qwen36_neuron.planning.bars import bars_json
from qwen36_neuron.planning.delta_rule import Prefill
from qwen36_neuron.planning.estimate import Estimate
from qwen36_neuron.planning.report import estimate_json
from qwen36_neuron.provenance import provenance


def main(
    model: Annotated[Path, typer.Option(help="Checkpoint folder, or its config.json.")],
    profile: Annotated[str, typer.Option(help="Name of a shipped profile.")] = "128k",
) -> None:
    """Estimate the profile with kernels and weights that have prices, and record these as they are found."""
    config, sizes = ModelConfig.from_pretrained(model), Profile.load(profile)
    with price_record.collecting() as entries:

        def done(what: str) -> None:
            price_record.write(entries, provenance("modelled").as_dict())
            print(f"{what}: {len(entries)} prices", flush=True)

        for kernels, weights in (("fused", "fp8-mlp"), ("fused", "fp8"), ("nki", "fp8-mlp"), ("fused", "bf16")):
            options = replace(sizes.options, kernels=kernels, weights=weights)
            estimate = Estimate(replace(sizes, options=options), config, Prefill())
            if (kernels, weights) == ("fused", "fp8-mlp"):
                bars_json(estimate)
                done("bars")
            estimate_json(estimate)
            done(f"{kernels}, {weights}")
    print(f"written: {price_record.RECORD}")


if __name__ == "__main__":
    typer.run(main)
