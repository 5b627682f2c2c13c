"""`qwen36 calibrate-kv`: scales of FP8 keys and values, from a text that the model reads."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from qwen36_neuron.artifact.manifest import config_digest, weights_digest
from qwen36_neuron.checkpoint.kv_scales import FILE, calibrated, save_kv_scales
from qwen36_neuron.checkpoint.locate import locate
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.provenance import provenance

from .compare import Number


def calibrate_kv(
    model: Annotated[str, typer.Option(help="Checkpoint folder or Hugging Face id.")],
    text: Annotated[Path, typer.Option(help="UTF-8 file to read, of the kind that will be served.")],
    out: Annotated[Path, typer.Option(help="File to write; in the checkpoint's folder it is found by itself.")] = Path(
        FILE
    ),
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the text to read at most.")] = 65536,
    window: Annotated[int, typer.Option(min=1, help="Tokens of context at most.")] = 2048,
    dtype: Annotated[Number, typer.Option(help="Number format that the model runs in.")] = Number.FLOAT32,
    draft_layer: Annotated[
        bool | None, typer.Option(help="Of the draft layer too. [default: where the checkpoint has one]")
    ] = None,
) -> None:
    """Read a text on the CPU, and write a scale for the keys and one for the values of every head.

    `--kv-cache-dtype fp8` needs them. The file says in its metadata what it was made from.
    """
    from transformers import AutoTokenizer  # slow to import, as is the runtime

    from qwen36_neuron.runtime.kv_calibration import KVObserver, has_draft_layer

    folder = locate(model)
    config = ModelConfig.from_pretrained(folder)
    if not text.is_file():
        raise ConfigError("text", str(text), "no such file", "Give a UTF-8 file")
    content = text.read_text(encoding="utf-8")
    tokens = AutoTokenizer.from_pretrained(folder)(content)["input_ids"][:max_tokens]
    if not tokens:
        raise ConfigError("text", str(text), "holds no tokens", "Give a longer one")
    drafts = has_draft_layer(folder, config) if draft_layer is None else draft_layer
    observer = KVObserver(folder, min(window, len(tokens)), dtype.value, drafts)
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        task = progress.add_task("reading", total=len(tokens))
        for done in observer.observe(tokens):
            progress.update(task, completed=done)
    scales = calibrated(observer.largest, str(text))
    about = {
        "model": folder.resolve().name,
        "model_config": config_digest(config),
        "model_weights": weights_digest(folder),
        "text": text.name,
        "text_sha256": hashlib.sha256(content.encode()).hexdigest(),
        "tokens": str(len(tokens)),
        "window": str(observer.window),
        "dtype": dtype.value,
    }
    made = provenance("measured")
    save_kv_scales(scales, config, out, about | {"command": made.command, "commit": made.commit, "date": made.date})
    table = Table("layer", "largest key", "scale", "largest value", "scale", title=f"{len(tokens):,} tokens of {text}")
    for layer, (keys, values) in observer.largest.items():
        each = zip(keys, scales.keys[layer], values, scales.values[layer], strict=True)
        for head, numbers in enumerate(each):
            name = f"draft layer, head {head}" if layer == config.num_layers else f"{layer}, head {head}"
            table.add_row(name, *(f"{float(number):.4g}" for number in numbers))
    console.print(table)
    print(f"scales: {out}")
