"""INT8 checkpoints converted for a device: to FP8 and to bfloat16, of the numbers that the codes stand for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("compressed_tensors")

from quantised import FORMS, Made, compressed, make, maker

from qwen36_neuron.artifact.build import quantiser
from qwen36_neuron.artifact.manifest import weights_format
from qwen36_neuron.checkpoint.conversion import PARTS, Conversion, part_of
from qwen36_neuron.checkpoint.files import CheckpointError
from qwen36_neuron.checkpoint.fp8 import STORED, Scales, quantise_channels
from qwen36_neuron.checkpoint.load import load_weights
from qwen36_neuron.checkpoint.maker import PRESETS, make_checkpoint
from qwen36_neuron.checkpoint.quantiser import Quantiser, read_manifest
from qwen36_neuron.checkpoint.weight_format import WeightFormat
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError

Tensors = dict[str, torch.Tensor]
SPEC = replace(
    PRESETS["tiny"],
    vocab_size=1024,
    num_mtp_layers=1,
    num_query_heads=4,
    num_kv_heads=2,
    num_key_heads=2,
    num_value_heads=4,
)
DATA = Path(__file__).parents[2] / "data" / "quantised"
RECIPES = ("w8a16-channel", "w8a16-group", "w8a8", "auto-round")
INT8 = tuple(name for name in FORMS if "fp8" not in name)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source"), SPEC)


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    return maker(source, tmp_path_factory)


def stored(folder: Path) -> Tensors:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def convert(folder: Path, target: Path, weights: WeightFormat) -> Tensors:
    """Into small files, as `qwen36 compile` does."""
    work = quantiser(folder, target, weights, None)
    assert work is not None
    replace(work, max_shard_bytes=1 << 19).run()
    return stored(target)


@pytest.mark.parametrize("name", INT8)
@pytest.mark.parametrize("weights", WeightFormat)
def test_codes_become_what_their_numbers_become(
    name: str, weights: WeightFormat, made: Callable[[str], Made], tmp_path: Path
) -> None:
    one = made(name)
    numbers, before = stored(one.plain), stored(one.folder)
    after = convert(one.folder, tmp_path / "out", weights)
    wanted = {WeightFormat.BF16: set(), WeightFormat.FP8_MLP: {"mlp"}, WeightFormat.FP8: set(PARTS)}[weights]
    scales = {key for key in after if key.endswith(".scale")}
    assert set(after) - scales == set(numbers)
    for key, number in numbers.items():
        if part_of(key) in wanted:
            payload, scale = quantise_channels(number.float())
            assert after[key].dtype == STORED
            assert torch.equal(after[key].float(), payload.float()), key  # a zero may have either sign
            assert torch.equal(after[key.removesuffix(".weight") + ".scale"], scale), key
        elif key in before and before[key].dtype != torch.int8:
            assert torch.equal(after[key], before[key]), key
        else:
            assert torch.equal(after[key], number.to(torch.bfloat16)), key
    assert weights_format(tmp_path / "out") == weights
    assert quantiser(tmp_path / "out", tmp_path / "again", weights, None) is None
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("weights", [WeightFormat.BF16, WeightFormat.FP8])
def test_what_the_real_tools_wrote(recipe: str, weights: WeightFormat, tmp_path: Path) -> None:
    config = ModelConfig.from_pretrained(DATA / recipe)
    convert(DATA / recipe, tmp_path / "out", weights)
    before = load_weights(DATA / recipe, config, include_mtp=True, rounds_inputs=True)
    after = load_weights(tmp_path / "out", config, include_mtp=True)  # nothing rounds inputs any more
    assert set(before) == set(after)
    errors = read_manifest(tmp_path / "out")["tensors"]
    assert {error["action"] for error in errors.values()} <= {"quantise", "expand to bf16"}
    for key, number in before.items():
        if number.ndim == 1:
            assert torch.equal(after[key], number), key
        elif weights is WeightFormat.BF16:
            assert torch.equal(after[key], number.to(torch.bfloat16).float()), key
        else:  # 3 bits of fraction and a scale a channel
            assert float((after[key] - number).abs().max()) <= 2**-4 * float(number.abs().max()), key


def test_published_fp8_becomes_bf16_too(made: Callable[[str], Made], tmp_path: Path) -> None:
    one = made(next(name for name in FORMS if "fp8" in name))
    after, numbers = convert(one.folder, tmp_path / "out", WeightFormat.BF16), stored(one.plain)
    assert not any(tensor.dtype == STORED for tensor in after.values())
    for key, number in numbers.items():
        assert torch.equal(after[key], number.to(after[key].dtype)), key
    assert weights_format(one.folder) != "bf16"


def test_an_interrupted_conversion_goes_on_with_the_same_bytes(made: Callable[[str], Made], tmp_path: Path) -> None:
    folder = made(INT8[0]).folder
    whole = convert(folder, tmp_path / "whole", WeightFormat.FP8)
    work = Quantiser(Conversion(folder, frozenset(PARTS)), tmp_path / "cut", max_shard_bytes=1 << 19)

    class Interrupted(Exception):
        pass

    written = 0

    def stop(count: int) -> None:
        nonlocal written
        written += count
        if written > 1 << 20:
            raise Interrupted

    with pytest.raises(Interrupted):
        work.run(stop)
    work.run()
    again = stored(tmp_path / "cut")
    assert set(again) == set(whole)
    assert all(again[key].flatten().view(torch.uint8).equal(whole[key].flatten().view(torch.uint8)) for key in whole)


@pytest.mark.parametrize("lost", ["weight_scale", "weight_packed", "weight_shape"])
def test_a_matrix_that_lacks_a_part_is_named(lost: str, source: Path, tmp_path: Path) -> None:
    one = make(source, tmp_path, compressed("group", 128))
    tensors = stored(one.folder)
    name = next(key for key in tensors if key.endswith(f"gate_proj.{lost}"))
    del tensors[name]
    _write(one.folder, tensors)
    with pytest.raises(CheckpointError, match=rf"missing: .*layers.*gate_proj\.{lost}"):
        _ = Conversion(one.folder).work


def test_parts_that_do_not_fit_are_named(source: Path, tmp_path: Path) -> None:
    one = make(source, tmp_path, compressed("group", 128))
    tensors = stored(one.folder)
    name = next(key for key in tensors if key.endswith("gate_proj.weight_scale"))
    tensors[name] = tensors[name][:-1]
    _write(one.folder, tensors)
    with pytest.raises(CheckpointError, match=r"gate_proj.weight_scale is .*must be"):
        _ = Conversion(one.folder).work


def test_refusals_name_the_remedy(source: Path, made: Callable[[str], Made], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no matrix is in eight bits"):
        _ = Conversion(source, frozenset()).work
    with pytest.raises(ConfigError, match=r"are not in blocks.*Use --scales channel"):
        _ = Conversion(made(INT8[0]).folder, frozenset({"mlp"}), Scales.BLOCK).work
    assert quantiser(source, tmp_path / "out", WeightFormat.BF16, None) is None
    folder = tmp_path / "unknown"
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(ConfigError, match=r"quantization_config\.quant_method='awq'"):
        quantiser(folder, tmp_path / "out", WeightFormat.FP8, None)


def _write(folder: Path, tensors: Tensors) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, folder / "model.safetensors")
