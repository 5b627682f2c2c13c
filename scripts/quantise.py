"""Quantise a checkpoint by the recipe of a published one, with the tool that made it.

The tools bring packages of their own, so each lives in an environment beside this project's, whose Python runs this:

    python3.11 -m venv ~/llmcompressor && ~/llmcompressor/bin/pip install llmcompressor==0.14.0.1 typer
    ~/llmcompressor/bin/python scripts/quantise.py --recipe w8a16-group --model MODEL --data text.txt --out NEW

    python3.11 -m venv ~/auto-round && ~/auto-round/bin/pip install auto-round==0.16.1 typer
    ~/auto-round/bin/python scripts/quantise.py --recipe auto-round --model MODEL --data text.txt --out NEW

What is quantised is what published checkpoints of the family quantise: attention and feed-forward matrices, experts
included. The DeltaNet layers, embedding, head, routers, gates of shared experts and the image tower stay as they are,
and the draft layer, which transformers does not load, is copied. Nothing of this project is imported.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

KEPT = (
    "re:.*lm_head",
    "re:.*embed_tokens$",
    "re:.*linear_attn.*",
    "re:.*mlp.gate$",
    "re:.*shared_expert_gate$",
    "re:.*visual.*",
    "re:.*mtp.*",
)
"""Layers that stay as they are, as compressed-tensors names them."""

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
DRAFTS, INDEX = "mtp.safetensors", "model.safetensors.index.json"
SAMPLES, LENGTH = 256, 2048
"""Of a calibration text, unless told otherwise."""


@dataclass(frozen=True)
class Recipe:
    """What is run, and of which packages.

    Attributes:
        tool: the module that it is of; package: what installs it.
        needs_data: whether it looks at a text.
        run: (model's folder, text or None, samples, tokens of each, output folder), which writes the output.
    """

    tool: str
    package: str
    needs_data: bool
    run: Callable[[Path, str | None, int, int, Path], None]


def _compressed(strategy: str, *, inputs: bool, data: bool) -> Callable[[Path, str | None, int, int, Path], None]:
    """llm-compressor: 8-bit weights by groups of 128 or by channel, with or without 8-bit inputs."""

    def run(model: Path, text: str | None, samples: int, length: int, out: Path) -> None:
        from datasets import Dataset
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
        from transformers import AutoModelForImageTextToText, AutoTokenizer

        numbers: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": strategy}
        if strategy == "group":
            numbers["group_size"] = 128
        group: dict[str, Any] = {"targets": ["Linear"], "weights": numbers}
        if inputs:
            group["input_activations"] = {**numbers, "strategy": "token", "dynamic": True}
        loaded = AutoModelForImageTextToText.from_pretrained(model, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(model)
        given: dict[str, Any] = {}
        if data:
            rows = [
                {"input_ids": row, "attention_mask": [1] * len(row)} for row in _rows(tokenizer, text, samples, length)
            ]
            given = {"dataset": Dataset.from_list(rows), "num_calibration_samples": len(rows), "max_seq_length": length}
            # Every expert sees every token, since one that is rarely chosen would be quantised by next to nothing.
            given["moe_calibrate_all_experts"] = True
        modifier = (GPTQModifier if data else QuantizationModifier)(config_groups={"group_0": group}, ignore=list(KEPT))
        oneshot(model=loaded, recipe=[modifier], processor=tokenizer, **given)
        loaded.save_pretrained(out, save_compressed=True)

    return run


def _auto_round(model: Path, text: str | None, samples: int, length: int, out: Path) -> None:
    """AutoRound, exported as auto_round:auto_gptq."""
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype="auto")
    rows = [torch.tensor([row]) for row in _rows(tokenizer, text, samples, length)]
    kept = re.compile(r"lm_head|embed_tokens|linear_attn|mlp\.gate$|shared_expert_gate|visual|mtp")
    layers = {
        name: {"bits": 16, "data_type": "float"}
        for name, module in loaded.named_modules()
        if isinstance(module, torch.nn.Linear) and kept.search(name)
    }
    made = AutoRound(
        loaded,
        tokenizer,
        processor=tokenizer,
        bits=8,
        group_size=128,
        sym=True,
        dataset=rows,
        nsamples=len(rows),
        seqlen=length,
        layer_config=layers,
        enable_torch_compile=torch.cuda.is_available(),
    )
    made.quantize_and_save(str(out), format="auto_round:auto_gptq")
    for folder in [one for one in out.iterdir() if one.is_dir()]:  # it makes a folder of its own there
        shutil.copytree(folder, out, dirs_exist_ok=True)
        shutil.rmtree(folder)


RECIPES = {
    "w8a16-group": Recipe("llmcompressor", "llmcompressor", True, _compressed("group", inputs=False, data=True)),
    "w8a16-channel": Recipe("llmcompressor", "llmcompressor", False, _compressed("channel", inputs=False, data=False)),
    "w8a8": Recipe("llmcompressor", "llmcompressor", True, _compressed("channel", inputs=True, data=True)),
    "auto-round": Recipe("auto_round", "auto-round", True, _auto_round),
}


def _rows(tokenizer: Any, text: str | None, samples: int, length: int) -> list[list[int]]:
    """The first `samples` stretches of `length` tokens of a text; raises BadParameter where it has none."""
    tokens = tokenizer(text or "", add_special_tokens=False)["input_ids"]
    rows = [tokens[at : at + length] for at in range(0, len(tokens) - length + 1, length)][:samples]
    if not rows:
        raise typer.BadParameter(
            f"the text has {len(tokens)} tokens, fewer than one sample of {length}", param_hint="data"
        )
    return rows


def copy_draft_layer(model: Path, out: Path) -> int:
    """Copy what the tool has not written of the multi-token-prediction layer, which transformers leaves out.

    Returns:
        How many tensors that were: none where the tool copied or quantised the layer itself.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    found = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys() if name.startswith("mtp.")}  # noqa: SIM118
    written: dict[str, str] = {}
    for file in sorted(out.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            written |= dict.fromkeys(tensors.keys(), file.name)
    layers = {name.rpartition(".")[0] for name in written}  # a quantised matrix has other names in its layer
    missing = {name: tensor for name, tensor in found.items() if name.rpartition(".")[0] not in layers}
    if missing:
        save_file(missing, out / DRAFTS, metadata={"format": "pt"})
        places = dict(sorted({**written, **dict.fromkeys(missing, DRAFTS)}.items()))
        size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (out / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return len(missing)


def main(
    recipe: Annotated[str, typer.Option(help=f"One of: {', '.join(RECIPES)}.")],
    model: Annotated[Path, typer.Option(help="Folder of the checkpoint, in bfloat16.")],
    out: Annotated[Path, typer.Option(help="Folder for the quantised one; it must not be there.")],
    data: Annotated[
        Path | None, typer.Option(help="UTF-8 text to calibrate by: like what the model will be asked.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help=f"Stretches of the text that are looked at. [default: {SAMPLES}]")
    ] = None,
    length: Annotated[int | None, typer.Option(min=1, help=f"Tokens of each. [default: {LENGTH}]")] = None,
) -> None:
    """Quantise a checkpoint by a recipe."""
    if recipe not in RECIPES:
        raise typer.BadParameter(f"'{recipe}' is none of: {', '.join(RECIPES)}", param_hint="recipe")
    chosen = RECIPES[recipe]
    if not (model / "config.json").is_file():
        raise typer.BadParameter(f"{model} holds no checkpoint: it has no config.json", param_hint="model")
    if out.exists():
        raise typer.BadParameter(f"{out} is there already; remove it or name another", param_hint="out")
    if chosen.needs_data != (data is not None):
        needs = "looks at a text: give --data" if chosen.needs_data else "looks at no text: leave --data out"
        raise typer.BadParameter(f"recipe {recipe} {needs}", param_hint="data")
    for name, value in (("samples", samples), ("length", length)):
        if value is not None and data is None:
            raise typer.BadParameter(f"recipe {recipe} looks at no text: leave --{name} out", param_hint=name)
    try:
        text = None if data is None else data.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{data} cannot be read: {error}", param_hint="data") from error
    if importlib.util.find_spec(chosen.tool) is None:
        message = f"{chosen.package} is not installed for this Python: pip install {chosen.package}"
        raise typer.BadParameter(f"{message}, in an environment of its own", param_hint="recipe")
    chosen.run(model, text, samples or SAMPLES, length or LENGTH, out)
    for name in TOKENIZER:
        if (model / name).is_file() and not (out / name).is_file():
            shutil.copy(model / name, out / name)
    copied = copy_draft_layer(model, out)
    print(f"written: {out}" + (f", with {copied} tensors of the draft layer as they were" if copied else ""))


if __name__ == "__main__":
    typer.run(main)
