"""Trains the demo checkpoint on one GPU and writes it in Hugging Face layout.

python scripts/train_demo.py train --config scripts/train_demo.yaml --out checkpoints/demo-train
python scripts/train_demo.py export --config scripts/train_demo.yaml --out checkpoints/demo-train --to FOLDER
python scripts/train_demo.py curve checkpoints/demo-train/log.jsonl training.png
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file
from transformers import AutoTokenizer

from qwen36_lab.demo.evaluation import recall_probes, skill_probes
from qwen36_lab.demo.mixture import Rows
from qwen36_lab.demo.training import Trainer, TrainingConfig, exact
from qwen36_lab.demo.vocabulary import build_demo_tokenizer
from qwen36_neuron.checkpoint.maker import (
    CheckpointSpec,
    config_json,
    generation_config_json,
    random_weights,
    write_weights,
)
from qwen36_neuron.checkpoint.names import HEAD, MTP_PREFIX, TEXT_PREFIXES
from qwen36_neuron.config import ModelConfig

SHARD_BYTES = 15 << 20
QUICK_DEPTHS = [0.0, 0.25, 0.5, 0.75, 1.0]
QUICK_LENGTHS = (512, 1024, 4096, 8192, 16384)

app = typer.Typer(add_completion=False, help=__doc__)
ConfigOption = Annotated[Path, typer.Option(help="the run, as YAML")]
OutOption = Annotated[Path, typer.Option(help="folder of the tokenizer, the fp32 weights and the log")]


@app.command()
def train(
    config: ConfigOption,
    out: OutOption,
    first_phase: Annotated[int, typer.Option(help="continue from the weights in OUT with this phase")] = 0,
    workers: Annotated[int, typer.Option(help="processes that make the data")] = 14,
    each: Annotated[int, typer.Option(help="recall questions at every length and depth after a phase")] = 20,
) -> None:
    """Run the phases; after each, save the weights and measure exact answers."""
    run = TrainingConfig.read(config)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer.json").exists():
        build_demo_tokenizer(run.model["vocab_size"]).save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    spec = CheckpointSpec(**run.model, seed=run.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(run, ModelConfig.from_dict(config_json(spec, tokenizer)), device)
    model = trainer.model
    if first_phase:
        for name, tensor in _read_master(out).items():
            model.parameters[name].data.copy_(tensor)

    def after(phase: int) -> None:
        write_weights(out, {name: p.detach().cpu() for name, p in model.parameters.items()}, SHARD_BYTES)
        at_once = run.phases[phase].rows * run.phases[phase].length
        results: dict[str, list[bool]] = defaultdict(list)
        for kind in ("needle", "table"):
            for length in QUICK_LENGTHS:
                if length <= at_once:
                    probes = recall_probes(tokenizer, kind, length, QUICK_DEPTHS, each, run.seed)
                    for probe, right in exact(model, tokenizer, probes, at_once):
                        results[f"{kind} {probe.length}"].append(right)
        for probe, right in exact(model, tokenizer, skill_probes(5 * each, run.seed), at_once):
            results[f"{probe.kind}{' thinking' if probe.turn.reasoning else ''}"].append(right)
        shares = {name: round(sum(right) / len(right), 3) for name, right in results.items()}
        with (out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"after_phase": phase, "exact": shares}) + "\n")

    trainer.run(tokenizer, out / "log.jsonl", first_phase, workers, after)


@app.command()
def export(
    config: ConfigOption, out: OutOption, to: Annotated[Path, typer.Option(help="the checkpoint folder")]
) -> None:
    """Write the trained weights in bf16 as a whole checkpoint: weights, tokenizer, configuration."""
    run = TrainingConfig.read(config)
    tokenizer = AutoTokenizer.from_pretrained(out)
    spec = replace(CheckpointSpec(**run.model, seed=run.seed), dtype="bfloat16")
    raw = config_json(spec, tokenizer)
    tensors = random_weights(ModelConfig.from_dict(raw), spec)  # the vision tower stays as it is made
    for name, tensor in _read_master(out).items():
        stored = name if name == HEAD or name.startswith(MTP_PREFIX) else TEXT_PREFIXES[0] + name
        tensors[stored] = tensor.to(torch.bfloat16)
    to.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(to)
    for file, content in (("config.json", raw), ("generation_config.json", generation_config_json(tokenizer))):
        (to / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_weights(to, tensors)


@app.command()
def sample(
    config: ConfigOption,
    tokenizer: Annotated[Path, typer.Option(help="folder with a tokenizer")] = Path("assets/demo-checkpoint"),
    rows: Annotated[int, typer.Option(help="conversations to print")] = 20,
) -> None:
    """Print conversations like those trained on, made with another seed."""
    phase = TrainingConfig.read(config).phases[-1]
    reader = AutoTokenizer.from_pretrained(tokenizer)
    tokens, weights = Rows(reader, phase.shares, rows, 512, 1, "sample")[0]
    for ids, weight in zip(tokens, weights, strict=True):
        print(reader.decode(ids[weight > 0]))


@app.command()
def curve(
    log: Annotated[Path, typer.Argument(help="log.jsonl of a run")], to: Annotated[Path, typer.Argument()]
) -> None:
    """Draw the loss curve of a run."""
    from qwen36_lab.demo.plot import plot  # matplotlib is not needed where the training runs

    plot(log, to)


def _read_master(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in sorted(folder.glob("model-*.safetensors")) for name, t in load_file(file).items()}


if __name__ == "__main__":
    app()
