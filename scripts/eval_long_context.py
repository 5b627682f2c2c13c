"""Asks a served model for needles among up to a million tokens, and says what memory that took.

The model is made by hand (qwen36_lab.long_context.model): it tells whether every token of a long prompt is there, at
its position, for those that come after, and nothing about how well a trained model reads. YaRN stretches its positions
by 4, as published model cards have it.

    python scripts/eval_long_context.py --tokens 1048575 --out profile_artifacts/long_context
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from qwen36_lab.long_context import model
from qwen36_lab.long_context.served import ask
from qwen36_neuron.provenance import provenance


def main(
    tokens: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 1048575,
    positions: Annotated[
        int, typer.Option(help="Positions of the model, a quarter of what it is served with.")
    ] = 262144,
    kernels: Annotated[str, typer.Option(help="fused or torch.")] = "fused",
    out: Annotated[Path | None, typer.Option(help="Folder to write long_context.json to.")] = None,
) -> None:
    """Make the model, serve it, ask for all needles."""
    with TemporaryDirectory() as made:
        result = ask(model.make(Path(made) / "needle", positions), tokens, positions, kernels)
    result = {"provenance": provenance("measured").as_dict(), **result}
    print(json.dumps(result, indent=1))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "long_context.json").write_text(json.dumps(result, indent=1) + "\n")
    raise typer.Exit(0 if result["right"] == len(result["answers"]) else 1)


if __name__ == "__main__":
    typer.run(main)
