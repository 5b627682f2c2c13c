"""What INT8 weights would cost a decode step on a Trn2, beside FP8 and bfloat16: modelled, not measured.

    python scripts/price_int8.py --out profile_artifacts/formats/int8_prices.json

One core's share of the MLP of a layer of Qwen3.6-27B (TP 4, two cores a rank), weights alone, in the NKI interpreter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nki_kernels.interpreter import PriceList
from qwen36_lab.pricing.int8 import WAYS, price
from qwen36_neuron.provenance import provenance

ROWS = (1, 8)


def main(
    out: Annotated[Path, typer.Option(help="File for the rows, with their provenance.")] = Path(
        "profile_artifacts/formats/int8_prices.json"
    ),
) -> None:
    """Price every way and print a line each."""
    origin, prices = provenance("modelled").as_dict(), PriceList()
    rows = [price(way, count, prices) for count in ROWS for way in WAYS]
    print("Modelled, not measured: us from the cheapest prices, at the centre, to the dearest.")
    for row in rows:
        us, busy = row["us"], row["busy_us"]
        print(
            f"{row['way']:<36}{row['rows']:>2} rows{us['low']:>7.0f}{us['centre']:>7.0f}{us['high']:>7.0f}"
            f"   HBM {row['hbm_us']:>4.0f}   TensorE {busy['tensor']:>4.0f}   VectorE {busy['vector']:>4.0f}"
            f"   binds: {row['binds']}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {"provenance": origin, "prices": prices.to_dict(), "ways": WAYS, "rows": rows}
    out.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
