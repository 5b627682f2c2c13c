"""Checkpoints as llm-compressor and AutoRound themselves wrote them (test/data/quantised), served.

What they mean is computed here from the files alone, by compressed-tensors' own functions and by AutoRound's packing
written out, and run by transformers in fp32. Tolerance as in test_quantised.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3_5ForConditionalGeneration

pytest.importorskip("compressed_tensors")

from compressed_tensors.compressors.naive_quantized import IntQuantizationCompressor
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationScheme

from qwen36_neuron.checkpoint.maker import CheckpointSpec, make_checkpoint, write_weights
from qwen36_neuron.runtime import DraftRequest, Output, Row, RuntimeConfig, Step, open_runtime

DATA = Path(__file__).parents[2] / "data" / "quantised"
RECIPES = ("w8a16-channel", "w8a16-group", "w8a8", "auto-round")
SPEC = CheckpointSpec(4, 128, 128, 1, 1, 1, 1, vocab_size=512, num_mtp_layers=1, seed=36)
PARTS = ("weight_packed", "weight_shape", "qzeros", "scales", "g_idx")
"""Of a quantised matrix, beside its codes."""
TOLERANCE = 5e-5
TOKENS = torch.randint(0, 500, (140,), generator=torch.Generator().manual_seed(0)).tolist()
CUTS = (100, 32, *[1] * 8)

Tensors = dict[str, torch.Tensor]


def stored(folder: Path) -> Tensors:
    found: Tensors = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def multiplied_out(folder: Path) -> tuple[Tensors, set[str]]:
    """Every matrix of a checkpoint in fp32, and the names of those that were quantised."""
    tensors, config = stored(folder), json.loads((folder / "config.json").read_text())["quantization_config"]
    plain, quantised = {}, set()
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        parts = {key.rpartition(".")[2]: value for key, value in tensors.items() if key.rpartition(".")[0] == layer}
        if part == "qweight":
            plain[f"{layer}.weight"] = _auto_round(parts)
        elif part == "weight_scale":
            scheme = QuantizationScheme(
                **{k: v for k, v in config["config_groups"]["group_0"].items() if k != "format"}
            )
            packed = "weight_packed" in parts
            tool = PackedQuantizationCompressor if packed else IntQuantizationCompressor
            held = {**parts, "weight_scale": parts["weight_scale"].float()}
            plain[f"{layer}.weight"] = tool.decompress(held, scheme)["weight"].float()
        elif not (part == "weight" and "weight_scale" in parts) and part not in PARTS:
            plain[name] = tensor.float()
        if part in ("qweight", "weight_scale"):
            quantised.add(layer)
    return plain, quantised


def _auto_round(parts: Tensors) -> torch.Tensor:
    """Codes less the zero point, four in a word, times their group's scale; [out, in]."""
    shifts = torch.arange(0, 32, 8)
    codes = ((parts["qweight"][:, None] >> shifts[:, None]) & 255).flatten(0, 1)  # [in, out]
    zeros = ((parts["qzeros"][..., None] >> shifts) & 255).flatten(1) + 1  # [groups, out]
    group = len(codes) // len(zeros)
    wide = [each.float().repeat_interleave(group, 0) for each in (zeros, parts["scales"])]
    return ((codes - wide[0]) * wide[1]).t().contiguous()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint of the same numbers in fp32, by recipe; with none, what was quantised."""
    kept: dict[str, Path] = {}

    def once(recipe: str) -> Path:
        if recipe not in kept:
            folder = kept[recipe] = tmp_path_factory.mktemp("plain") / "checkpoint"
            if not recipe:
                return make_checkpoint(folder, SPEC)
            shutil.copytree(DATA / recipe, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
            write_weights(folder, multiplied_out(DATA / recipe)[0])
            config = json.loads((folder / "config.json").read_text())
            del config["quantization_config"]
            (folder / "config.json").write_text(json.dumps(config))
        return kept[recipe]

    return once


def logits(folder: Path, kernels: str) -> torch.Tensor:
    """After every token, of our runtime, cut into prompts and single tokens."""
    sizes = {"max_model_len": 256, "num_blocks": 9, "num_lanes": 1}
    run, start, parts = open_runtime(RuntimeConfig(model=folder, kernels=kernels, **sizes)), 0, []  # type: ignore[arg-type]
    for length in CUTS:
        row = Row("test", 1, TOKENS[start : start + length], start, range(1, 5), output=Output.ALL_LOGITS)
        found = run.run(Step((row,))).rows[0].logits
        assert found is not None
        parts.append(found)
        start += length
    return torch.cat(parts)


def expected(folder: Path) -> torch.Tensor:
    model = Qwen3_5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([TOKENS])).logits[0]


@pytest.mark.parametrize("kernels", ["torch", "fused"])
@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe != "w8a8"])
def test_logits_are_those_of_transformers(recipe: str, kernels: str, plain: Callable[[str], Path]) -> None:
    if kernels == "fused":
        pytest.importorskip("numba")
    assert (logits(DATA / recipe, kernels) - expected(plain(recipe))).abs().max() <= TOLERANCE


def test_w8a8_is_near_its_weights_alone(plain: Callable[[str], Path]) -> None:
    """Its inputs are rounded too: see test_quantised for how."""
    found, weights = logits(DATA / "w8a8", "torch"), expected(plain("w8a8"))
    difference = (found - weights).abs().max() / weights.abs().max()
    assert 1e-4 < difference < 0.05


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_quantises_what_published_ones_do(recipe: str) -> None:
    quantised = multiplied_out(DATA / recipe)[1]
    network = {name for name in quantised if not name.startswith("mtp.")}
    # Three matrices of the feed-forward block in each of four layers, and four of the one attention layer.
    assert len(network) == 4 * 3 + 4
    assert all(".mlp." in name or ".self_attn." in name for name in network)
    assert (quantised == network) is (recipe != "auto-round"), "AutoRound quantises the draft layer too"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_quantised_model_is_near_what_it_was(recipe: str, plain: Callable[[str], Path]) -> None:
    """llm-compressor turns norms into 1 + weight and back in bfloat16, which costs them their last bits."""
    found, was = (multiplied_out(DATA / recipe)[0], stored(plain("")))
    for name, tensor in was.items():
        one = float(name.endswith("norm.weight"))
        difference = (found[name] - tensor.float()).norm() / (one + tensor.float()).norm()
        assert difference < (2**-8 if one else 0.02), f"{name} lost {difference:.4f}"


@pytest.mark.parametrize("recipe", ["w8a16-group", "auto-round"])
def test_drafts(recipe: str, plain: Callable[[str], Path]) -> None:
    """The draft layer lies there as it was, or quantised by AutoRound; its drafts are those of the same numbers."""
    drafts = []
    for folder in (DATA / recipe, plain(recipe)):
        sizes = {"max_model_len": 256, "num_blocks": 9, "num_lanes": 1, "max_drafts": 3, "max_proposals": 3}
        run = open_runtime(RuntimeConfig(model=folder, kernels="torch", **sizes))  # type: ignore[arg-type]
        first = run.run(Step((Row("test", 1, TOKENS[:70], 0, range(1, 5)),))).rows[0].tokens
        drafts.append((first, run.draft([DraftRequest("test", 1, first, range(1, 5), 3)])))
    assert drafts[0] == drafts[1]
    assert len(drafts[0][1][0]) == 3
