"""Modelled prices of a mixture's decode step: experts split inside each over the ranks, and spread whole over them.

    python scripts/bench_experts.py --out profile_artifacts/moe/experts.json

A rank of four of Qwen3.6-35B-A3B on two physical cores, in the NKI interpreter; nothing here is measured on hardware.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nki_kernels.interpreter import PriceList
from qwen36_lab.pricing.decode_layers import layers, price
from qwen36_lab.pricing.placement import placements
from qwen36_neuron.provenance import provenance

OUT = Path("profile_artifacts/moe/experts.json")


def main(out: Annotated[Path, typer.Option(help="File for the rows, with their provenance.")] = OUT) -> None:
    """Price the kernel by rows and both placements, and print a line each."""
    origin, prices = provenance("modelled").as_dict(), PriceList()
    print("Modelled, not measured.")
    kernels = [price(layer, prices) for layer in layers() if layer.kernel == "decode_experts"]
    for row in kernels:
        us = row["us"]
        print(
            f"{row['weights']:<10}{row['sequences']:>2} x {row['tokens']}  "
            f"{us['centre']:6.1f} us ({us['low']:.0f} to {us['high']:.0f}), HBM {row['hbm_us']:.1f}, {row['binds']}"
        )
    placed = placements(prices)
    for row in placed:
        print(
            f"{row['weights']:<10}{row['placement']:<8}1 row: worst {row['worst_us']:.1f} us, "
            f"mean {row['mean_us']:.1f}; 8 rows: {row['eight_rows_us']:.1f}"
        )
    result = {"provenance": origin, "prices": prices.to_dict(), "kernels": kernels, "placements": placed}
    out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
