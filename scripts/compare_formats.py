"""How far every number format is from the unquantised checkpoint, over a fixed text: a table, JSON and a plot.

    python scripts/compare_formats.py --made w8a16-group=quantised --out profile_artifacts/formats

INT8 by plain rounding and block FP8 are written here; `--made NAME=FOLDER` adds what the real tools made of the same
checkpoint (`scripts/quantise.py`). What `qwen36 compile --weights fp8` makes of those and of the plain checkpoint for a
device is compared too. Keys and values in FP8 have the scales of `--kv-scales` (`qwen36 calibrate-kv`).
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from qwen36_lab.formats import fp8, int8, write
from qwen36_neuron.checkpoint.conversion import FORMATS, Conversion
from qwen36_neuron.checkpoint.quantiser import Quantiser
from qwen36_neuron.checkpoint.weight_format import WeightFormat
from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.provenance import provenance
from qwen36_neuron.quality import QualityMeter, compare
from qwen36_neuron.runtime import Runtime, RuntimeConfig, open_runtime

WINDOW, CHUNK, TOP = 2048, 128, 1000
BAR = 0.005
"""Mean KL that W8A16's card aims for, in nats a token."""


@dataclass(frozen=True)
class Candidate:
    """One format: where the weights lie, what they are computed in, and what keys and values are held in."""

    folder: Path
    dtype: str = "float32"
    kv_cache_dtype: str = "auto"


def opened(candidate: Candidate, scales: Path | None) -> Runtime:
    sizes: dict[str, Any] = {"max_model_len": WINDOW, "max_step_tokens": CHUNK, "num_blocks": WINDOW // BLOCK_SIZE + 1}
    kv: dict[str, Any] = {}
    if candidate.kv_cache_dtype != "auto":
        kv = {"kv_cache_dtype": candidate.kv_cache_dtype, "kv_scales": scales}
    return open_runtime(RuntimeConfig(candidate.folder, dtype=candidate.dtype, num_lanes=1, **sizes, **kv))


def candidates(model: Path, work: Path, made: dict[str, Path], scales: Path | None) -> dict[str, Candidate]:
    """Every format by its name, those that are written here into a folder."""
    forms = {
        "INT8 groups, rounded": int8(128),
        "INT8 channels, rounded": int8(None),
        "block FP8": fp8(vocabulary=False),
        "block FP8 and vocabulary": fp8(vocabulary=True),
    }
    found = {"bfloat16 arithmetic": Candidate(model, "bfloat16")}
    for name, form in forms.items():
        write(model, work / name, form)
        found[name] = Candidate(work / name)
    found |= {name: Candidate(folder) for name, folder in made.items()}
    for name in ("plain", *(name for name in found if "8A" in name)):
        folder = model if name == "plain" else found[name].folder
        work_on = Quantiser(Conversion(folder, FORMATS[WeightFormat.FP8]), work / f"{name} as FP8")
        work_on.run()
        found[f"{name}, as FP8 for a device"] = Candidate(work_on.target)
    if scales is not None:
        found["FP8 KV"] = Candidate(model, kv_cache_dtype="fp8")
        found["block FP8, vocabulary and KV"] = Candidate(
            found["block FP8 and vocabulary"].folder, kv_cache_dtype="fp8"
        )
    return found


def plot(rows: dict[str, dict[str, Any]], file: Path) -> None:
    """Mean and 90th percentile of KL by format."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = sorted(rows, key=lambda name: rows[name]["kl_mean"])
    figure, axes = pyplot.subplots(figsize=(8, 0.42 * len(names) + 1.2))
    axes.barh(names, [rows[name]["kl_mean"] for name in names], color="#4878a8", label="mean")
    axes.plot([rows[name]["kl_p90"] for name in names], names, "o", color="#c05030", label="90 %")
    axes.axvline(BAR, color="#808080", linestyle="--", label=f"{BAR}, W8A16's aim")
    axes.set(xscale="log", xlabel="KL divergence to the unquantised checkpoint, nats a token")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main(
    model: Annotated[Path, typer.Option(help="Plain checkpoint.")] = Path("assets/demo-checkpoint"),
    text: Annotated[Path, typer.Option(help="UTF-8 text.")] = Path("profile_artifacts/demo/sample.txt"),
    made: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER of a quantised one; as many as you like.")] = None,
    kv_scales: Annotated[Path | None, typer.Option(help="Scales of FP8 keys and values; without, none are.")] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of the text at most.")] = 20_000,
    out: Annotated[Path, typer.Option(help="Folder for distance.json and distance.png.")] = Path(
        "profile_artifacts/formats"
    ),
) -> None:
    """Print the distance of every format, and write distance.json and distance.png."""
    folders = {}
    for one in made or []:
        name, separator, folder = one.partition("=")
        if not separator or not (Path(folder) / "config.json").is_file():
            raise typer.BadParameter(f"'{one}' is not NAME=FOLDER of a checkpoint", param_hint="made")
        folders[name] = Path(folder)
    tokens = AutoTokenizer.from_pretrained(model)(text.read_text(encoding="utf-8"))["input_ids"][:max_tokens]
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as work:
        for name, candidate in candidates(model, Path(work), folders, kv_scales).items():
            meter = QualityMeter(TOP)
            pair = opened(Candidate(model), None), opened(candidate, kv_scales)
            for _ in compare(*pair, tokens, meter, WINDOW, CHUNK):
                pass
            rows[name] = asdict(meter.result())
            print(f"{name}: mean KL {rows[name]['kl_mean']:.2e}", flush=True)
    table = Table(title=f"Distance from {model.name}, {len(tokens):,} tokens, nats")
    for title in ("", "mean KL", "median", "90 %", "largest", "same first", f"top {TOP}", "perplexity"):
        table.add_column(title, justify="left" if not title else "right")
    for name, row in rows.items():
        numbers = [f"{row[key]:.1e}" for key in ("kl_mean", "kl_median", "kl_p90", "kl_max")]
        shares = [f"{row[key]:.2%}" for key in ("top1_agreement", "coverage")]
        table.add_row(name, *numbers, *shares, f"{row['candidate_perplexity']:.4f}")
    Console(width=120).print(table)
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "provenance": provenance("measured").as_dict(),
        "what": "measured on CPU",
        "model": model.name,
        "text": str(text),
        "tokens": len(tokens),
        "window": WINDOW,
        "bar": {"W8A16 mean KL": BAR},
        "formats": rows,
    }
    (out / "distance.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    plot(rows, out / "distance.png")


if __name__ == "__main__":
    typer.run(main)
