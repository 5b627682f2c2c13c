"""Scales of FP8 keys and values: under every name that is published, from files, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen36_neuron.checkpoint.formats import read_format
from qwen36_neuron.checkpoint.kv_scales import FILE, KVScales, load_kv_scales, save_kv_scales
from qwen36_neuron.checkpoint.load import load_weights
from qwen36_neuron.checkpoint.maker import PRESETS, make_checkpoint, write_weights
from qwen36_neuron.checkpoint.names import KVScale, canonical_name, kv_scale
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError

AT = "model.language_model.layers.3.self_attn."
KV = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
NAMES = {
    "k_scale": "k",
    "attn.v_scale": "v",
    "kv_scale": "kv",
    "k_proj.k_scale": "k",
    "v_proj.v_scale": "v",
    "qkv_proj.k_scale": "k",
    "qkqkv_proj.v_scale": "v",
    "k_proj.output_scale": "k",
    "v_cache.scale": "v",
    "q_scale": "q",
    "k_zero_point": "k_zero_point",
}


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = replace(
        PRESETS["tiny"], num_mtp_layers=1, num_query_heads=4, num_kv_heads=2, num_key_heads=2, num_value_heads=4
    )
    return make_checkpoint(tmp_path_factory.mktemp("two"), spec)


@pytest.fixture
def folder(two_heads: Path, tmp_path: Path) -> Path:
    shutil.copytree(two_heads, tmp_path / "model")
    return tmp_path / "model"


def add(folder: Path, **more: torch.Tensor | float) -> None:
    """Tensors beside those of the checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    given = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in more.items()}
    write_weights(folder, {**tensors, **{name.replace("__", "."): value for name, value in given.items()}})


def model_of(folder: Path) -> ModelConfig:
    return ModelConfig.from_pretrained(folder)


@pytest.mark.parametrize(("name", "kind"), NAMES.items())
def test_names_that_vllm_takes(name: str, kind: str) -> None:
    for prefix, layer in ((AT, "layers.3"), ("mtp.layers.0.self_attn.", "mtp.layers.0")):
        assert kv_scale(canonical_name(prefix + name) or "") == KVScale(layer, kind)


@pytest.mark.parametrize("name", ["k_proj.weight_scale", "k_norm.weight", "v_proj.scale", "o_proj.input_scale"])
def test_other_names(name: str) -> None:
    assert kv_scale(canonical_name(AT + name) or "") is None


@pytest.mark.parametrize(
    "names",
    [("k_scale", "v_scale"), ("k_proj.k_scale", "v_proj.v_scale"), ("k_proj.output_scale", "v_proj.output_scale")],
)
def test_published_scales_are_doubled_and_one_is_for_all_heads(folder: Path, names: tuple[str, str]) -> None:
    """They are for an FP8 of up to 448. The weights are read as before."""
    add(folder, **{AT + names[0]: 0.5, AT + names[1]: torch.tensor([[[0.25]], [[0.125]]])})
    found = load_kv_scales(folder, model_of(folder))
    assert found.keys[3].tolist() == [1.0, 1.0]
    assert found.values[3].tolist() == [0.5, 0.25]
    assert "layers.3.mixer.in_proj_qgkv.weight" in load_weights(folder, model_of(folder))


def test_one_scale_for_both_and_those_of_queries(folder: Path) -> None:
    add(folder, **{f"{AT}kv_scale": 0.5, f"{AT}q_scale": 3.0, f"{AT}k_zero_point": 0.0})
    found = load_kv_scales(folder, model_of(folder))
    assert found.keys[3].tolist() == found.values[3].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"k_scale": 0.5}, "lacks layers.3.self_attn.v_scale"),
        ({"k_scale": 0.5, "v_scale": 0.0}, "must be positive"),
        ({"k_scale": float("nan"), "v_scale": 1.0}, "must be positive"),
        ({"k_scale": torch.ones(3), "v_scale": 1.0}, "has 3 numbers, must have 1 or 2"),
        ({"k_scale": 0.5, "v_scale": 0.5, "v_zero_point": 2.0}, "quantised symmetrically"),
        ({"k_scale": 1.0, "v_scale": 1.0}, "are all 1"),
    ],
)
def test_scales_that_cannot_be_used(folder: Path, tensors: dict[str, torch.Tensor | float], message: str) -> None:
    add(folder, **{AT + name: value for name, value in tensors.items()})
    with pytest.raises(ConfigError, match=rf"{message}.*calibrate-kv"):
        load_kv_scales(folder, model_of(folder))


def test_scales_of_a_layer_without_kv(folder: Path) -> None:
    add(folder, **{AT.replace("3", "2") + "k_scale": 0.5, f"{AT}kv_scale": 0.5})
    with pytest.raises(ConfigError, match=r"has scales of layers.2, which hold no KV"):
        load_kv_scales(folder, model_of(folder))


def made(model: ModelConfig) -> KVScales:
    layers = (*model.attention_layers, model.num_layers)
    keys, values = ({layer: torch.tensor([1.0, 2.0]) * (layer + n) for layer in layers} for n in range(2))
    return KVScales(keys, values, "test")


def test_a_file_is_read_as_it_was_written_and_found_in_the_folder(folder: Path, tmp_path: Path) -> None:
    model, scales = model_of(folder), made(model_of(folder))
    save_kv_scales(scales, model, folder / FILE, {"tokens": "7"})
    found = load_kv_scales(folder, model, draft_layer=True)
    assert found.digest() == scales.digest()
    assert found.source == str(folder / FILE)
    assert sorted(load_kv_scales(folder, model).keys) == [3]
    other = KVScales({**scales.keys, 3: torch.tensor([8.0, 8.0])}, scales.values, "other")
    save_kv_scales(other, model, tmp_path / "given", {})
    given = load_kv_scales(folder, model, draft_layer=True, file=tmp_path / "given")
    assert given.keys[3].tolist() == [8.0, 8.0]
    assert given.digest() != scales.digest()


def test_files_of_others(folder: Path, tmp_path: Path) -> None:
    """Without the metadata of calibration scales mean what published ones mean."""
    save_file({f"{AT}k_scale": torch.tensor(0.5), f"{AT}v_scale": torch.tensor(0.25)}, tmp_path / "plain")
    assert load_kv_scales(folder, model_of(folder), file=tmp_path / "plain").values[3].tolist() == [0.5, 0.5]
    save_file({f"{AT}k_norm.weight": torch.ones(2)}, tmp_path / "weights")
    with pytest.raises(ConfigError, match=r"k_norm.weight is no scale"):
        load_kv_scales(folder, model_of(folder), file=tmp_path / "weights")
    save_file({f"{AT}k_scale": torch.ones(2)}, tmp_path / "later", {"format": "qwen36-kv-scales", "version": "9"})
    with pytest.raises(ConfigError, match="of another release"):
        load_kv_scales(folder, model_of(folder), file=tmp_path / "later")


def test_ranks_share_heads(folder: Path) -> None:
    """Two heads: one a rank of two."""
    model = model_of(folder)
    scales = made(model)
    for tp in (1, 2):
        parts = [scales.weights(model, tp, rank) for rank in range(tp)]
        assert torch.cat([part["layers.3.mixer.k_scale"] for part in parts]).tolist() == scales.keys[3].tolist()
        assert {len(part) for part in parts} == {4}
    assert set(scales.weights(model)) == {
        f"{at}.mixer.{name}_scale" for at in ("layers.3", "mtp.layer") for name in "kv"
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_bits": 4}, "kv_cache_scheme.num_bits=4"),
        ({"type": "int"}, "kv_cache_scheme.type='int'"),
        ({"symmetric": False}, "kv_cache_scheme.symmetric=False"),
        ({"dynamic": True}, "kv_cache_scheme.dynamic=True"),
        ({"strategy": "token"}, "kv_cache_scheme.strategy='token'"),
        ({"colour": 1}, "kv_cache_scheme.colour=1"),
    ],
)
def test_schemes(changes: dict[str, object], message: str) -> None:
    config = {"quant_method": "compressed-tensors", "format": "dense", "quantization_status": "frozen"}
    form = read_format({"quantization_config": {**config, "kv_cache_scheme": KV}})
    assert form is not None
    assert form.fp8_kv
    assert form.layout("layers.3.mlp.up_proj") is None
    with pytest.raises(ConfigError, match=message):
        read_format({"quantization_config": {**config, "kv_cache_scheme": {**KV, **changes}}})
    with pytest.raises(ConfigError, match="format='dense'"):
        read_format({"quantization_config": {**config, "kv_cache_scheme": None}})
