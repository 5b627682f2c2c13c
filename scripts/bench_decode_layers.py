"""Modelled prices of the fused kernels of a decode step, a rank of four of Qwen3.6-27B on two physical cores.

    python scripts/bench_decode_layers.py --out profile_artifacts/kernels/decode_layers.json

Every kernel runs in the NKI interpreter at full size, 1 to 40 rows; nothing here is measured on hardware.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nki_kernels.interpreter import PriceList
from qwen36_lab.pricing.decode_layers import HEAD, layers, price, price_head
from qwen36_neuron.provenance import provenance

OUT = Path("profile_artifacts/kernels/decode_layers.json")


def main(
    out: Annotated[Path, typer.Option(help="File for the rows, with their provenance.")] = OUT,
    kernel: Annotated[str | None, typer.Option(help="Print this kernel's rows alone, and write nothing.")] = None,
) -> None:
    """Price every layer and print a line each."""
    names = sorted({layer.kernel for layer in layers()})
    if kernel is not None and kernel not in names:
        raise typer.BadParameter(f"{kernel} is not priced here: choose of {', '.join(names)}", param_hint="kernel")
    origin, prices, rows = provenance("modelled").as_dict(), PriceList(), []
    print("Modelled, not measured.")
    for layer in layers():
        if kernel in (None, layer.kernel):
            row = (price_head if layer.kernel == HEAD else price)(layer, prices)
            us = row["us"]
            print(
                f"{row['kernel']:<24}{row['weights']:<10}{row['sequences']:>2} x {row['tokens']} over {row['held']:>6}"
                f"{us['low']:>8.1f}{us['centre']:>8.1f}{us['high']:>8.1f} us   HBM {row['hbm_us']:>6.1f}"
                f"   TensorE {row['busy_us']['tensor']:>6.1f}   binds: {row['binds']}",
                flush=True,
            )
            rows.append(row)
    if kernel is None:
        result = {"provenance": origin, "prices": prices.to_dict(), "layers": rows}
        out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
