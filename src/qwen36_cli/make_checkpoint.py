"""`qwen36 make-checkpoint`: a small checkpoint with random weights."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qwen36_neuron.config import ModelConfig


class Preset(StrEnum):
    """Shapes of made checkpoints."""

    TINY = "tiny"
    DEMO = "demo"
    TINY_MOE = "tiny-moe"


def make_checkpoint(
    folder: Annotated[Path, typer.Argument(help="New folder to write.")],
    preset: Annotated[Preset, typer.Option(help="Its shape.")] = Preset.DEMO,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    mtp: Annotated[bool, typer.Option(help="Add the multi-token-prediction layer.")] = False,
) -> None:
    """Write a small checkpoint with random weights in Hugging Face layout."""
    from qwen36_neuron.checkpoint.maker import PRESETS
    from qwen36_neuron.checkpoint.maker import make_checkpoint as make  # brings transformers, slow to import

    make(folder, replace(PRESETS[preset.value], seed=seed, num_mtp_layers=int(mtp)))
    parameters = ModelConfig.from_pretrained(folder).num_parameters(include_mtp=True)
    print(f"{folder}: {parameters / 1e6:.1f} M parameters")
