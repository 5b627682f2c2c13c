"""What FP8 weights cost a checkpoint: the error of every matrix, and how far the next-token distributions move.

    python scripts/fp8_quality.py --model assets/demo-checkpoint --text profile_artifacts/demo/sample.txt \
        --sequences 37 --out profile_artifacts/fp8

The reference is the checkpoint as it is stored. Both sides compute in fp32, so that only the weights differ. One more
row is the reference computed in bf16, which is the noise that serving has in any case.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table

from qwen36_neuron.checkpoint.conversion import PARTS, Conversion, part_of
from qwen36_neuron.checkpoint.corpus import default_corpus
from qwen36_neuron.checkpoint.files import CheckpointFiles
from qwen36_neuron.checkpoint.fp8 import BLOCK, STORED, Error, dequantise, halve, quantise_channels
from qwen36_neuron.checkpoint.names import text_shapes
from qwen36_neuron.checkpoint.quantiser import Quantiser
from qwen36_neuron.checkpoint.sharding import Slice
from qwen36_neuron.config import BLOCK_SIZE, ModelConfig
from qwen36_neuron.devices import DType
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.provenance import provenance
from qwen36_neuron.runtime import RuntimeConfig, open_runtime
from qwen36_neuron.step import Output, Row, Step

VARIANTS = {
    "fp8-mlp": frozenset({"mlp"}),
    "attention alone": frozenset({"attention"}),
    "deltanet alone": frozenset({"deltanet"}),
    "head alone": frozenset({"head"}),
    "fp8": frozenset(PARTS),
}
SEQUENCE = 512
"""Tokens of one sequence of the text."""

PUBLISHED_MAX = 448.0


def all_logits(model: Path, sequences: torch.Tensor, dtype: DType = "float32") -> torch.Tensor:
    """fp32 [sequences, tokens, vocab] of int64 [sequences, tokens], each sequence by itself."""
    count, length = sequences.shape
    blocks = -(-length // BLOCK_SIZE)
    runtime = open_runtime(
        RuntimeConfig(
            model, dtype=dtype, max_model_len=length, max_step_tokens=length, num_lanes=1, num_blocks=blocks + 1
        )
    )
    logits = []
    for index in range(count):
        row = Row(f"text {index}", 1, sequences[index].tolist(), 0, range(1, blocks + 1), output=Output.ALL_LOGITS)
        result = runtime.run(Step((row,), released_lanes=() if index == 0 else (1,))).rows[0]
        assert result.logits is not None
        logits.append(result.logits)
    return torch.stack(logits)


def compare(reference: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """KL(reference || other) in nats and agreement of the most likely token, over all positions."""
    p, q = F.log_softmax(reference.double(), -1), F.log_softmax(other.double(), -1)
    kl = (p.exp() * (p - q)).sum(-1).flatten()
    return {
        "kl_mean": kl.mean().item(),
        "kl_p99": kl.quantile(0.99).item(),
        "kl_max": kl.max().item(),
        "top1_agreement": (reference.argmax(-1) == other.argmax(-1)).double().mean().item(),
        "relative_logit_error": ((other - reference).norm() / reference.norm()).item(),
    }


def text(model: Path, sequences: int, file: Path | None = None) -> torch.Tensor:
    """The start of a text, by default of the tokenizer's own corpus: int64 [sequences, SEQUENCE].

    Raises:
        ConfigError: the text is shorter than that.
    """
    from transformers import AutoTokenizer  # slow to import

    words = "".join(default_corpus()) if file is None else file.read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(model)(words)["input_ids"]
    if len(ids) < sequences * SEQUENCE:
        remedy = f"Use at most {len(ids) // SEQUENCE}, or a longer text"
        raise ConfigError("sequences", sequences, f"the text has {len(ids)} tokens, {SEQUENCE} a sequence", remedy)
    return torch.tensor(ids[: sequences * SEQUENCE]).view(sequences, SEQUENCE)


def scale_layouts(model: Path) -> dict[str, Any]:
    """SQNR in dB of all MLP matrices together, by the way their scales are laid out."""
    totals = {name: Error() for name in ("channel", "published block", "halved block", "block, then channel")}
    shapes = text_shapes(ModelConfig.from_pretrained(model))
    with CheckpointFiles(model) as files:
        for name in (name for name in shapes if part_of(name) == "mlp"):
            weight = files.read(Slice(name, 0, 0, shapes[name][0])).float()
            payload, scale = quantise_channels(weight)
            totals["channel"].add(weight, dequantise(payload, scale, (1, weight.shape[1])))
            blocks = weight.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
            scale = blocks.abs().amax((1, 3)) / PUBLISHED_MAX
            payload = (
                (blocks / scale[:, None, :, None]).clamp(-PUBLISHED_MAX, PUBLISHED_MAX).to(STORED).view(weight.shape)
            )
            published = dequantise(payload, scale)
            totals["published block"].add(weight, published)
            totals["halved block"].add(weight, dequantise(halve(payload), 2 * scale))
            payload, scale = quantise_channels(published)
            totals["block, then channel"].add(weight, dequantise(payload, scale, (1, weight.shape[1])))
    return {name: error.sqnr_db for name, error in totals.items()}


def main(
    model: Annotated[Path, typer.Option(help="Checkpoint folder, in bf16, fp16 or fp32.")],
    out: Annotated[Path, typer.Option(help="Folder for quality.json and quality.txt.")],
    sequences: Annotated[int, typer.Option(min=1, help=f"Sequences of {SEQUENCE} tokens to compare on.")] = 8,
    text_file: Annotated[
        Path | None, typer.Option("--text", help="UTF-8 text to compare on. [default: the tokenizer's own corpus]")
    ] = None,
) -> None:
    """Convert the checkpoint in every way and compare each with the original."""
    tokens = text(model, sequences, text_file)
    reference = all_logits(model, tokens)
    variants: dict[str, Any] = {"bf16 arithmetic": compare(reference, all_logits(model, tokens, "bfloat16"))}
    layers: dict[str, Any] = {}
    for name, parts in VARIANTS.items():
        with TemporaryDirectory() as folder:
            manifest = Quantiser(Conversion(model, parts), Path(folder)).run()
            variants[name] = compare(reference, all_logits(Path(folder), tokens))
        if name == "fp8":
            layers = manifest["tensors"]
    result = {
        "model": model.name,
        "tokens": tokens.numel(),
        "vocab_size": reference.shape[-1],
        "mean_reference_entropy": entropy(reference),
        "variants": variants,
        "mlp_sqnr_db_by_scales": scale_layouts(model),
        "matrices": layers,
        "provenance": provenance("measured").as_dict(),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "quality.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    console = Console(record=True, width=120)
    show(console, result)
    (out / "quality.txt").write_text(console.export_text(), encoding="utf-8")


def entropy(logits: torch.Tensor) -> float:
    """Mean entropy in nats: what a divergence is to be seen beside."""
    p = F.log_softmax(logits.double(), -1)
    return -(p.exp() * p).sum(-1).mean().item()


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the result as tables."""
    table = Table(title=f"{result['model']}: FP8 against bf16 over {result['tokens']} tokens (measured on CPU)")
    for column in ("", "mean KL, nats", "p99 KL", "max KL", "top-1 agreement", "relative logit error"):
        table.add_column(column, justify="right" if column else "left")
    for name, v in result["variants"].items():
        numbers = (v["kl_mean"], v["kl_p99"], v["kl_max"])
        agreement = f"{100 * v['top1_agreement']:.2f} %"
        table.add_row(name, *(f"{n:.2e}" for n in numbers), agreement, f"{v['relative_logit_error']:.4f}")
    console.print(table)
    console.print(f"Entropy of the reference: {result['mean_reference_entropy']:.3f} nats a token.")
    scales = Table(title="MLP matrices, by what has a scale of its own")
    scales.add_column("")
    scales.add_column("SQNR, dB", justify="right")
    for name, value in result["mlp_sqnr_db_by_scales"].items():
        scales.add_row(name, f"{value:.2f}")
    console.print(scales)
    matrices = Table(title="Matrices, a scale a channel")
    for column in ("", "SQNR, dB", "mean relative error", "max error / channel's max"):
        matrices.add_column(column, justify="right" if column else "left")
    for name, e in result["matrices"].items():
        short = name.removeprefix("model.language_model.").removesuffix(".weight")
        numbers = (f"{e['sqnr_db']:.2f}", f"{e['mean_relative']:.4f}", f"{e['max_of_channel']:.4f}")
        matrices.add_row(short, *numbers)
    console.print(matrices)


if __name__ == "__main__":
    typer.run(main)
