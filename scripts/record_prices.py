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
    """Estimate the profile with every choice of kernels and weights, and record the prices that it took."""
    config, sizes = ModelConfig.from_pretrained(model), Profile.load(profile)
    with price_record.collecting() as entries:
        for kernels in ("torch", "nki", "fused"):
            for weights in ("fp8", "fp8-mlp", "bf16"):
                options = replace(sizes.options, kernels=kernels, weights=weights)
                estimate = Estimate(replace(sizes, options=options), config, Prefill())
                estimate_json(estimate)
                if kernels == "fused":
                    bars_json(estimate)
                print(f"{kernels}, {weights}: {len(entries)} prices", flush=True)
                price_record.write(entries, provenance("modelled").as_dict())
    print(f"written: {price_record.RECORD}")


if __name__ == "__main__":
    typer.run(main)
