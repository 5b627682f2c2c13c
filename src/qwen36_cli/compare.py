"""`qwen36 compare`: one model's predictions held to another's."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from qwen36_neuron.checkpoint.locate import locate
from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.provenance import provenance
from qwen36_neuron.quality import Quality, QualityMeter
from qwen36_neuron.quality import compare as held_to


class KVNumber(StrEnum):
    """Number formats of keys and values, by vLLM's names."""

    AUTO = "auto"
    FP8 = "fp8"
    FP8_E4M3 = "fp8_e4m3"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Number(StrEnum):
    """Number formats of weights and activations."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def compare(
    reference: Annotated[str, typer.Option(help="Checkpoint folder or Hugging Face id to be held to.")],
    candidate: Annotated[str, typer.Option(help="Checkpoint folder or Hugging Face id to be measured.")],
    text: Annotated[Path, typer.Option(help="UTF-8 file to predict.")],
    reference_dtype: Annotated[Number, typer.Option(help="Number format that the reference runs in.")] = Number.FLOAT32,
    candidate_dtype: Annotated[Number, typer.Option(help="Number format that the candidate runs in.")] = Number.FLOAT32,
    reference_kv_cache_dtype: Annotated[KVNumber, typer.Option(help="Of its keys and values.")] = KVNumber.AUTO,
    candidate_kv_cache_dtype: Annotated[KVNumber, typer.Option(help="Of its keys and values.")] = KVNumber.AUTO,
    kv_scales: Annotated[
        Path | None, typer.Option(help="Scales of the candidate's FP8 keys and values. [default: its folder's]")
    ] = None,
    window: Annotated[int, typer.Option(help="Tokens of context at most.")] = 2048,
    chunk: Annotated[int, typer.Option(help="Tokens whose logits are held at once.")] = 128,
    k: Annotated[int, typer.Option(help="Most likely tokens that coverage looks at.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print KL divergence, agreement, coverage and perplexity of a candidate against a reference over a text."""
    from transformers import AutoTokenizer  # slow to import, as is the runtime

    from qwen36_neuron.runtime import RuntimeConfig, open_runtime

    models = locate(reference), locate(candidate)
    if not text.is_file():
        raise ConfigError("text", str(text), "no such file", "Give a UTF-8 file")
    tokens = AutoTokenizer.from_pretrained(models[0])(text.read_text(encoding="utf-8"))["input_ids"]
    blocks = -(-window // BLOCK_SIZE) + 1
    first, second = (
        open_runtime(
            RuntimeConfig(
                model,
                dtype=number.value,
                kv_cache_dtype=kv.value,
                kv_scales=scales,
                max_model_len=window,
                max_step_tokens=max(chunk, 1),
                num_blocks=blocks,
                num_lanes=1,
            )
        )
        for model, number, kv, scales in (
            (models[0], reference_dtype, reference_kv_cache_dtype, None),
            (models[1], candidate_dtype, candidate_kv_cache_dtype, kv_scales),
        )
    )
    meter = QualityMeter(k)
    with Progress(disable=as_json) as progress:
        task = progress.add_task("comparing", total=len(tokens))
        for done in held_to(first, second, tokens, meter, window, chunk):
            progress.update(task, completed=done)
    result = meter.result()
    if as_json:
        print(json.dumps({"provenance": provenance("measured").as_dict(), **asdict(result)}, indent=2))
    else:
        Console().print(quality_table(result))


def quality_table(result: Quality) -> Table:
    """The measures as a table."""
    table = Table("", "", title=f"Candidate against reference, {result.tokens:,} tokens")
    for name, value in (
        ("KL divergence, mean", f"{result.kl_mean:.3e} nats"),
        ("KL divergence, median", f"{result.kl_median:.3e} nats"),
        ("KL divergence, 90 %", f"{result.kl_p90:.3e} nats"),
        ("KL divergence, max", f"{result.kl_max:.3e} nats"),
        ("same most likely token", f"{result.top1_agreement:.4%}"),
        (f"coverage of the top {result.k}", f"{result.coverage:.4%}"),
        ("perplexity, reference", f"{result.reference_perplexity:.5f}"),
        ("perplexity, candidate", f"{result.candidate_perplexity:.5f}"),
    ):
        table.add_row(name, value)
    return table
